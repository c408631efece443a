//! What must come of it: the tasks, one at a time, each at its own moment, on a Redis that nothing ever happens to.
//!
//! This shares no code with what it judges: it knows what a task does from the [workload](super::workload), and speaks
//! to Redis by the tests' own few lines.

use std::collections::HashMap;

use crate::harness::resp::{Client, Reply};

use super::workload::{Command, Does, Script, Task, Words, now_ms};

pub struct Model {
    redis: Client,
    /// What was last applied on a key.
    versions: HashMap<String, u64>,
}

/// A task that nobody can make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The code of the error, where Redis gives it for the task as a whole.
    pub code: Option<String>,
    /// Of a pipeline `each`, which commands failed.
    pub failed: Vec<usize>,
}

impl Model {
    pub fn new(redis: Client) -> Self {
        Self { redis, versions: HashMap::new() }
    }

    /// Makes a task. Returns why not, if it must be in the dead letters.
    pub fn make(&mut self, task: &Task) -> Option<Death> {
        if let Some((key, version)) = &task.version
            && self.versions.get(key).is_some_and(|applied| applied >= version)
        {
            return None;
        }
        let base_ms = task.base_ms.expect("a task that was accepted has its moment");
        let death = match &task.does {
            Does::Nothing => None,
            Does::Command(command) => self.command(command, base_ms).err().map(Death::of_error),
            Does::Each(commands) => self.each(commands, base_ms),
            Does::Atomic(commands) => self.atomic(commands, base_ms),
            Does::Script(script) => self.script(script, base_ms),
            Does::Unlink(key) => {
                self.ask(&[b"UNLINK".to_vec(), key.clone().into_bytes()]).expect("UNLINK is never refused");
                None
            }
        };
        if let (None, Some((key, version))) = (&death, &task.version) {
            self.versions.insert(key.clone(), *version);
        }
        death
    }

    fn each(&mut self, commands: &[Command], base_ms: i64) -> Option<Death> {
        let mut failed = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            if self.command(command, base_ms).is_err() {
                failed.push(index);
            }
        }
        (!failed.is_empty()).then_some(Death { code: None, failed })
    }

    /// Redis does not roll back: what fails leaves the others as they are.
    fn atomic(&mut self, commands: &[Command], base_ms: i64) -> Option<Death> {
        let failed = commands.iter().filter(|command| self.command(command, base_ms).is_err()).count();
        let code = (failed < commands.len()).then(|| "partial".to_owned());
        (failed > 0).then_some(Death { code, failed: Vec::new() })
    }

    fn script(&mut self, script: &Script, base_ms: i64) -> Option<Death> {
        let mut words: Words = vec![b"EVAL".to_vec(), script.source.into(), script.keys.len().to_string().into()];
        words.extend(script.keys.iter().map(|key| key.clone().into_bytes()));
        for (index, arg) in script.args.iter().enumerate() {
            let arg = match script.ttl_arg == Some(index) {
                true => (base_ms + arg.parse::<i64>().expect("a TTL is a number") - now_ms()).to_string(),
                false => arg.clone(),
            };
            words.push(arg.into_bytes());
        }
        self.ask(&words).err().map(|_| Death { code: None, failed: Vec::new() })
    }

    /// The error is the server's text.
    fn command(&mut self, command: &Command, base_ms: i64) -> Result<(), String> {
        if let Some(runs) = &command.runs {
            self.ask(runs)?;
        }
        if let Some(expires) = &command.expires {
            let at = (base_ms + expires.after_ms).to_string();
            let mut words: Words = vec![b"PEXPIREAT".to_vec(), expires.key.clone().into_bytes(), at.into_bytes()];
            words.extend(expires.option.map(Vec::from));
            self.ask(&words)?;
        }
        Ok(())
    }

    fn ask(&mut self, words: &[Vec<u8>]) -> Result<(), String> {
        match self.redis.ask(words).expect("nothing happens to the model's server") {
            Reply::Error(text) => Err(text),
            _ => Ok(()),
        }
    }
}

impl Death {
    fn of_error(text: String) -> Self {
        Self { code: text.split(' ').next().map(str::to_owned), failed: Vec::new() }
    }
}
