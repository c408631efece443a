//! The settings as flags, and the configuration that a command works with.

use std::{path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, error::ErrorKind};

use crate::config::{
    CONFIG_ENV, Config, ConfigError, Loaded, Raw, SETTINGS, Setting, Sources, identity_setting, parse_duration,
    target_setting,
};

/// Which file is read.
#[derive(Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// TOML file with settings
    #[arg(id = "config_file", long = "config", global = true, value_name = "FILE", env = CONFIG_ENV)]
    pub file: Option<PathBuf>,
}

impl ConfigFile {
    /// The configuration of the file and the environment.
    pub fn load(self) -> Result<Loaded, ConfigError> {
        AllSettings { file: self, flags: SettingFlags::default() }.load()
    }
}

/// All settings of a command that can set each of them.
#[derive(clap::Args)]
pub struct AllSettings {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: SettingFlags,
}

impl AllSettings {
    /// The configuration of the file, the environment and the flags.
    pub fn load(self) -> Result<Loaded, ConfigError> {
        Config::load(&Sources { file: self.file.file, env: std::env::vars_os().collect(), flags: self.flags.0 })
    }
}

/// One flag per setting, made from the table of settings. Their values are not checked here but with all others.
#[derive(Default)]
struct SettingFlags(Vec<(String, Raw)>);

const TARGET: &str = "target";
const IDENTITY: &str = "target-identity";

impl clap::Args for SettingFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let heading = "Settings (the same names in the environment and the file)";
        SETTINGS
            .iter()
            .map(arg)
            .chain([target_arg(), identity_arg()])
            .fold(command, |command, arg| command.arg(arg.help_heading(heading)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            let given: Vec<String> = matches.get_many(setting.name).into_iter().flatten().cloned().collect();
            match given.as_slice() {
                [] => {}
                [one] => self.0.push((setting.name.into(), Raw::One(one.clone()))),
                _ => self.0.push((setting.name.into(), Raw::Many(given))),
            }
        }
        for given in matches.get_many::<String>(TARGET).into_iter().flatten() {
            // Refused here and not by a value parser, which would print the URL with its password.
            let Some((name, url)) = given.split_once('=') else {
                return Err(clap::Error::raw(ErrorKind::ValueValidation, "--target takes NAME=URL"));
            };
            self.0.push((target_setting(name), Raw::One(url.into())));
        }
        for given in matches.get_many::<String>(IDENTITY).into_iter().flatten() {
            let Some((name, identity)) = given.split_once('=') else {
                return Err(clap::Error::raw(ErrorKind::ValueValidation, "--target-identity takes NAME=WORD"));
            };
            self.0.push((identity_setting(name), Raw::One(identity.into())));
        }
        Ok(())
    }
}

fn arg(setting: &'static Setting) -> Arg {
    // Names have to live as long as the process. They are made once, a few dozen bytes each.
    let arg = Arg::new(setting.name)
        .long(&*setting.flag_name().leak())
        .value_name(setting.kind.placeholder())
        .action(if setting.kind.is_list() { ArgAction::Append } else { ArgAction::Set })
        .help(help(setting));
    if setting.kind.is_flag() { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

fn help(setting: &Setting) -> String {
    let default = if setting.default.is_empty() { String::new() } else { format!(" [default: {}]", setting.default) };
    format!("{}{default} [env: {}]", setting.help, setting.env_name())
}

fn target_arg() -> Arg {
    Arg::new(TARGET).long(TARGET).value_name("NAME=URL").action(ArgAction::Append).help(
        "A further Redis and its name; may be repeated. In the file `[targets.NAME]` with `url = ...` \
         [env: REDRIVE_TARGETS_NAME_URL]",
    )
}

fn identity_arg() -> Arg {
    Arg::new(IDENTITY).long(IDENTITY).value_name("NAME=WORD").action(ArgAction::Append).help(
        "What a target is called where sidecars of a group compare theirs, in place of its address; may be repeated. \
         In the file `[targets.NAME]` with `identity = ...` [env: REDRIVE_TARGETS_NAME_IDENTITY]",
    )
}

/// Reads a duration that is not a setting.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as `200ms`, `30s` or `5m`".into())
}
