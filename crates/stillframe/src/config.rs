//! `stillframe.toml`: what options are where they are not given.
//!
//! Every key is an option under its own name, so what an option means is said in one place, and a value is checked by whoever checks
//! the option. The environment and the command line come before it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::OsStr;
use clap::error::ErrorKind;
use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser};
use toml::{Table, Value};

use crate::cli::{Cli, Command as Chosen};
use crate::passphrase::is_given;
use crate::repository::PASSPHRASE;

/// Names the file; empty: there is none.
const VARIABLE: &str = "STILLFRAME_CONFIG";
/// What a section may hold: what is the same every time, and takes nothing away from what is typed.
const IN_SECTIONS: [(&str, &[&str]); 4] = [
    (
        "backup",
        &[
            "sources",
            "name",
            "tag",
            "fast",
            "anew",
            "limit-bandwidth",
            "cpu-percent",
            "staging",
            "reserve",
            "deadline",
            "wal-dir",
            "db-path",
            "cf-path",
            "sqlite-lock-timeout",
            "sqlite-wal-cap",
            "keep-last",
            "keep-hourly",
            "keep-daily",
            "keep-weekly",
            "keep-monthly",
            "keep-yearly",
            "keep-within",
            "prune",
        ],
    ),
    ("check", &["read-data-subset", "fast"]),
    ("verify", &["level", "staging", "fast"]),
    ("prune", &["limit-bandwidth", "fast"]),
];
/// Options that stand above all sections: they mean the same for every command that has them.
const FOR_ALL: [&str; 4] = ["repo", "passphrase-file", "on-success", "on-failure"];

/// Reads the command line, with what the configuration says for what it does not say. The error is a usage error; beside it, which file
/// was read.
pub fn parse(words: &[OsString]) -> Result<Cli, (clap::Error, Option<PathBuf>)> {
    let Some((path, is_asked_for)) = place(words) else {
        return Cli::try_parse_from(words).map_err(|error| (error, None));
    };
    if let Some(answered) = without(words) {
        return answered.map_err(|error| (error, None));
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_asked_for => String::new(),
        Err(error) => {
            let why = format!("cannot read the configuration {:?}: {error}", path.display().to_string());
            return Err((wrong(&why), None));
        }
    };
    let is_answered = is_given(None, PASSPHRASE);
    let command = configured(Cli::command(), &text, is_answered)
        .map_err(|why| (wrong(&format!("{}: {why}", path.display())), None))?;
    let failed = |error| (error, Some(path.clone()));
    let matches = command.try_get_matches_from(words).map_err(failed)?;
    Cli::from_arg_matches(&matches).map_err(failed)
}

/// Help, the version and completions need no configuration, and are there when it is broken, too.
fn without(words: &[OsString]) -> Option<Result<Cli, clap::Error>> {
    match Cli::try_parse_from(words) {
        Ok(cli) => matches!(cli.command, Chosen::Completions { .. }).then_some(Ok(cli)),
        Err(error) if !error.use_stderr() => Some(Err(error)),
        Err(_) => None,
    }
}

fn wrong(message: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::InvalidValue, format!("{message}\n"))
}

/// Where the file is, and whether somebody named it.
fn place(words: &[OsString]) -> Option<(PathBuf, bool)> {
    let mut words = words.iter().skip(1).take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let named = match word.to_str() {
            Some("--config") => words.next().map(PathBuf::from),
            text => text.and_then(|text| text.strip_prefix("--config=")).map(PathBuf::from),
        };
        if let Some(path) = named {
            return Some((path, true));
        }
    }
    if let Some(path) = std::env::var_os(VARIABLE) {
        return (!path.is_empty()).then(|| (PathBuf::from(path), true));
    }
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|base| !base.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))
        .map(|base| base.join("stillframe/stillframe.toml"));
    let of_all = PathBuf::from("/etc/stillframe/stillframe.toml");
    own.into_iter().chain([of_all]).find(|path| path.is_file()).map(|path| (path, false))
}

/// The command line with other defaults. Where the environment answers what the passphrase is, no file does.
fn configured(mut command: Command, text: &str, is_answered: bool) -> Result<Command, String> {
    let table: Table =
        text.parse().map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    for (key, value) in table {
        if let Value::Table(options) = value {
            let known = IN_SECTIONS.iter().find(|(name, _)| *name == key);
            let (Some((_, allowed)), Some(section)) = (known, command.find_subcommand_mut(&key)) else {
                return Err(unknown("section", &key, IN_SECTIONS.iter().map(|(name, _)| *name)));
            };
            for (option, value) in options {
                let id = id_of(section, &option).filter(|_| allowed.contains(&option.as_str()));
                let id =
                    id.ok_or_else(|| unknown(&format!("option of {key}"), &option, allowed.iter().copied()))?;
                let changed = std::mem::take(section);
                *section = with_default(changed, &id, &option, &value)?;
            }
        } else if FOR_ALL.contains(&key.as_str()) {
            let changed = for_all(command.clone(), &key, &value)?;
            if key != "passphrase-file" || !is_answered {
                command = changed;
            }
        } else {
            return Err(unknown("option", &key, FOR_ALL.into_iter()));
        }
    }
    Ok(command)
}

fn for_all(command: Command, key: &str, value: &Value) -> Result<Command, String> {
    let mut command = command;
    if let Some(id) = id_of(&command, key) {
        command = with_default(command, &id, key, value)?;
    }
    for section in command.get_subcommands_mut() {
        let changed = std::mem::take(section);
        *section = for_all(changed, key, value)?;
    }
    Ok(command)
}

/// By its long name; what has none, by its own.
fn id_of(command: &Command, option: &str) -> Option<String> {
    let is_it = |arg: &&clap::Arg| match arg.get_long() {
        Some(long) => long == option,
        None => arg.get_id().as_str() == option,
    };
    Some(command.get_arguments().find(is_it)?.get_id().to_string())
}

fn with_default(command: Command, id: &str, option: &str, value: &Value) -> Result<Command, String> {
    let action = command.get_arguments().find(|arg| arg.get_id() == id).map(|arg| arg.get_action().clone());
    let is_flag = matches!(action, Some(ArgAction::SetTrue));
    let is_list = matches!(action, Some(ArgAction::Append));
    let values: Vec<String> = match value {
        Value::Boolean(set) if is_flag => vec![set.to_string()],
        Value::String(text) if !is_flag => vec![text.clone()],
        Value::Integer(number) if !is_flag => vec![number.to_string()],
        Value::Array(values) if is_list => {
            let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(|| format!("{option}: a list of texts is expected"))?
        }
        _ if is_flag => return Err(format!("{option}: true or false is expected")),
        _ if is_list => return Err(format!("{option}: a list of texts is expected, [\"…\", \"…\"]")),
        _ => return Err(format!("{option}: a text or a number is expected")),
    };
    if values.is_empty() {
        return Ok(command);
    }
    // Clap keeps defaults for as long as the program runs.
    let values = values.into_iter().map(|value| -> &'static str { Box::leak(value.into_boxed_str()) });
    let values: Vec<OsStr> = values.map(OsStr::from).collect();
    Ok(command.mut_arg(id, |arg| arg.required(false).default_values(values)))
}

fn unknown<'a>(what: &str, key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    format!("there is no {what} {key:?}; known: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, words: &[&str]) -> Result<Cli, String> {
        let command = configured(Cli::command(), text, false)?;
        let words = std::iter::once("stillframe").chain(words.iter().copied());
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        Cli::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    const NIGHTLY: &str = r#"
        repo = "/backups/node"
        on-failure = "mail"
        [backup]
        sources = ["files:/a", "files:/b"]
        name = "nightly"
        tag = ["x"]
        keep-daily = 7
        prune = true
        [check]
        read-data-subset = "5%"
    "#;

    #[test]
    fn what_is_not_given_is_as_configured_and_what_is_given_counts() {
        let Chosen::Backup(backup) = parsed(NIGHTLY, &["backup"]).unwrap().command else { panic!() };
        assert_eq!(backup.sources, ["files:/a", "files:/b"]);
        assert_eq!((backup.repo.repo.as_str(), backup.name.as_deref()), ("/backups/node", Some("nightly")));
        assert_eq!((backup.tags, backup.after.prune, backup.fast), (vec!["x".to_owned()], true, false));
        assert_eq!(backup.hooks.on_failure.as_deref(), Some("mail"));
        let words = ["backup", "files:/c", "-r", "/elsewhere", "--name", "now"];
        let Chosen::Backup(backup) = parsed(NIGHTLY, &words).unwrap().command else { panic!() };
        assert_eq!((backup.sources, backup.repo.repo), (vec!["files:/c".into()], "/elsewhere".to_owned()));
        assert_eq!(backup.name.as_deref(), Some("now"));
        let Chosen::Check(check) = parsed(NIGHTLY, &["check"]).unwrap().command else { panic!() };
        assert_eq!(check.read_data_subset.map(|share| share.0), Some(500));
        // All data are read where that is asked for: the configured part stands back.
        assert!(parsed(NIGHTLY, &["check", "--read-data"]).is_ok());
        assert!(parsed(NIGHTLY, &["key", "list"]).is_ok(), "commands below commands, too");
        assert!(parsed("", &["backup"]).is_err(), "nothing is configured");
    }

    #[test]
    fn a_passphrase_of_the_environment_comes_before_a_configured_file() {
        let text = "repo = \"/r\"\npassphrase-file = \"/p\"";
        for (is_answered, file) in [(false, Some("/p")), (true, None)] {
            let command = configured(Cli::command(), text, is_answered).unwrap();
            let matches = command.try_get_matches_from(["stillframe", "snapshots"]).unwrap();
            let Chosen::Snapshots(options) = Cli::from_arg_matches(&matches).unwrap().command else {
                panic!()
            };
            assert_eq!(options.repo.passphrase.passphrase_file.as_deref(), file.map(Path::new));
        }
        assert!(configured(Cli::command(), "passphrase-file = 7.5", true).is_err(), "looked at all the same");
    }

    #[test]
    fn help_needs_no_configuration() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        assert!(without(&words("stillframe --help")).unwrap().is_err());
        assert!(without(&words("stillframe backup --help")).unwrap().is_err());
        assert!(without(&words("stillframe --version")).unwrap().is_err());
        assert!(without(&words("stillframe completions bash")).unwrap().is_ok());
        assert!(without(&words("stillframe jobs")).is_none());
        assert!(without(&words("stillframe backup --tpyo")).is_none());
    }

    #[test]
    fn every_option_that_a_section_may_hold_is_one() {
        let mut command = Cli::command();
        for (name, options) in IN_SECTIONS {
            let section = command.find_subcommand_mut(name).unwrap();
            options.iter().for_each(|option| assert!(id_of(section, option).is_some(), "{name} {option}"));
        }
    }

    #[test]
    fn what_means_nothing_is_an_error_that_says_what_would() {
        for (text, said) in [
            ("rpo = 1", "known: on-failure, on-success, passphrase-file, repo"),
            ("[bakup]", "there is no section \"bakup\""),
            ("[backup]\nkeep-dayly = 7", "keep-daily"),
            ("[backup]\nfast = \"yes\"", "fast: true or false"),
            ("[backup]\nname = true", "name: a text or a number"),
            ("[backup]\nsources = 7", ""),
            ("[backup]\ntag = [1]", "tag: a list of texts"),
            ("[key]\nlabel = \"x\"", "no section"),
            ("[backup]\ndry-run = true", "no option of backup"),
            ("[forget]\nkeep-daily = 7", "no section \"forget\""),
            ("repo = ", "TOML parse error"),
        ] {
            match configured(Cli::command(), text, false) {
                Err(why) => assert!(why.contains(said), "{text}: {why}"),
                Ok(_) => assert!(said.is_empty(), "{text} was taken"),
            }
        }
        let error = parsed("[backup]\nsources = [\"files:/a\"]\nkeep-daily = 0", &["backup", "-r", "/r"])
            .unwrap_err();
        assert!(error.contains("--keep-daily") && error.contains("whole number"), "{error}");
    }
}
