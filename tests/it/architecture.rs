//! Which part may name which library. The three sentences that ARCHITECTURE.md opens with.

use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(dir).expect("the sources are there").map(|entry| entry.expect("it can be read").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The files outside of `allowed` that use one of the crates, comments aside.
fn offenders(crates: &[&str], allowed: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&root) {
        let name = path.strip_prefix(&root).expect("it lies there").with_extension("").display().to_string();
        let is_allowed = |part: &&str| name == **part || name.starts_with(&format!("{part}/"));
        if allowed.iter().any(is_allowed) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("sources are text");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let names = |line: &str| {
            crates.iter().any(|name| line.contains(&format!("{name}::")) || line.contains(&format!("use {name};")))
        };
        if code.into_iter().any(names) {
            found.push(name);
        }
    }
    found
}

#[test]
fn redis_is_named_by_the_target_alone() {
    assert_eq!(offenders(&["deadpool_redis", "redis"], &["target"]), [""; 0]);
}

#[test]
fn http_is_named_by_the_api_and_the_composition_root_alone() {
    assert_eq!(offenders(&["axum", "utoipa", "utoipa_swagger_ui"], &["api", "app", "dashboard"]), [""; 0]);
}

#[test]
fn kafka_is_named_by_its_log_alone() {
    assert_eq!(offenders(&["rskafka", "kafka_protocol", "chrono"], &["log/kafka"]), [""; 0]);
}

/// The compiler refuses `unsafe` where nothing says that it is expected: so whoever says so is what is looked for.
#[test]
fn unsafe_code_is_in_one_named_function_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mentions = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("sources are text");
        text.lines().filter(|line| line.contains("unsafe_code")).count()
    };
    let counted = sources(&root.join("src")).into_iter().map(|path| (mentions(&path), path));
    let found: Vec<(usize, PathBuf)> = counted.filter(|(count, _)| *count > 0).collect();
    assert_eq!(found, [(1, root.join("src/log/kafka/nodelay.rs"))]);
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
    assert!(manifest.contains("unsafe_code = \"deny\""), "the crate's lint is what makes them say so");
}

/// The doc of `group` sends its reader to tests of each rule of a member: they are there.
#[test]
fn rules_of_a_member_have_the_tests_that_are_named_for_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("sources are text");
    let code: String = ["src", "tests"].into_iter().flat_map(|part| sources(&root.join(part))).map(read).collect();
    let group = read(root.join("src/log/kafka/group.rs"));
    let table = group.split("//! ```").nth(1).expect("it has one");
    let words = || table.split_whitespace();
    let rules: Vec<u32> = words().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(rules, (1..=10).collect::<Vec<_>>());
    let missing: Vec<&str> =
        words().filter(|word| word.contains('_') && !code.contains(&format!("fn {word}()"))).collect();
    assert_eq!(missing, [""; 0]);
    let untested: Vec<u32> = (1..=10).filter(|rule| !code.contains(&format!("fn rule_{rule}_"))).collect();
    assert_eq!(untested, [0; 0]);
}
