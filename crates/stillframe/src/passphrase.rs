//! Where secrets come from. They are wiped when dropped and never printed.

use std::env::VarError;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::failure::{Failure, Kind};
use crate::interrupt::while_asking;

/// Bytes of the first line of a passphrase file: who names another file by mistake is told so.
const LONGEST: u64 = 64 << 10;

/// A secret text.
pub type Secret = Zeroizing<String>;

/// What is asked for, and the environment variable that may answer.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Shown before the cursor.
    pub prompt: &'static str,
    /// Looked at when no file was given.
    pub variable: &'static str,
    /// Ask a second time, because a mistyped new passphrase locks everybody out.
    pub twice: bool,
}

/// Whether there is an answer without asking.
pub fn is_given(file: Option<&Path>, variable: &str) -> bool {
    file.is_some() || std::env::var_os(variable).is_some_and(|text| !text.is_empty())
}

/// From the file, else from the environment, else from the terminal. `None`: there is none of them.
pub fn obtain(file: Option<&Path>, question: Question) -> Result<Option<Secret>, Failure> {
    if let Some(path) = file {
        return read_file(path).map(Some);
    }
    match std::env::var(question.variable) {
        Ok(text) => return not_empty(Secret::new(text), question.variable).map(Some),
        Err(VarError::NotUnicode(_)) => {
            let message = format!("{} is not UTF-8; a passphrase is a text", question.variable);
            return Err(Failure::new(Kind::Passphrase, message));
        }
        Err(VarError::NotPresent) => {}
    }
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let first = ask(question.prompt)?;
    if question.twice && ask("Again: ")? != first {
        return Err(Failure::new(Kind::Passphrase, "the two passphrases differ; nothing was changed"));
    }
    not_empty(first, "the passphrase").map(Some)
}

fn ask(prompt: &str) -> Result<Secret, Failure> {
    let typed = while_asking(|| rpassword::prompt_password(prompt));
    typed.map(Secret::new).map_err(|error| match error.kind() {
        ErrorKind::Interrupted => Failure::new(Kind::Cancelled, "cancelled; nothing was changed"),
        _ => Failure::new(Kind::Failed, format!("cannot read from the terminal: {error}")),
    })
}

fn read_file(path: &Path) -> Result<Secret, Failure> {
    let failed = |error: std::io::Error| {
        let kind =
            if error.kind() == ErrorKind::PermissionDenied { Kind::Permission } else { Kind::Passphrase };
        Failure::new(kind, format!("cannot read {}: {error}", path.display()))
    };
    let mut line = Secret::new(String::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    BufReader::new(file.take(LONGEST + 1)).read_line(&mut line).map_err(failed)?;
    if line.len() as u64 > LONGEST {
        let message =
            format!("the first line of {} is no passphrase: it is longer than 64 KiB", path.display());
        return Err(Failure::new(Kind::Usage, message));
    }
    let length = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(length);
    not_empty(line, &path.display().to_string())
}

fn not_empty(secret: Secret, origin: &str) -> Result<Secret, Failure> {
    if secret.is_empty() {
        return Err(Failure::new(
            Kind::Passphrase,
            format!("{origin} is empty; a passphrase has at least one character"),
        ));
    }
    Ok(secret)
}
