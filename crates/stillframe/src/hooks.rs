//! Commands of the user's that learn how a job ended.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::cli::Hooks;
use crate::failure::{Failure, exit_code};
use crate::place::host;
use crate::session::Session;

/// A command that takes longer is ended.
const PATIENCE: Duration = Duration::from_mins(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What opens a repository is nobody else's business.
const SECRETS: [&str; 2] = ["STILLFRAME_PASSPHRASE", "STILLFRAME_NEW_PASSPHRASE"];

/// Calls the one that is for this end, and gives it the outcome on its standard input. Whatever comes of that changes nothing of the
/// outcome: it is told.
pub async fn call(
    session: &Arc<Session>,
    hooks: &Hooks,
    command: &str,
    started: Timestamp,
    done: &Result<(), Failure>,
) {
    let hook = match done {
        Ok(()) => &hooks.on_success,
        Err(_) => &hooks.on_failure,
    };
    let Some(hook) = hook.clone() else { return };
    let outcome = outcome(session, command, started, done);
    let there = Arc::clone(session);
    let called = tokio::task::spawn_blocking(move || run(&there, &hook, &outcome)).await;
    if let Ok(Err(why)) = called {
        session.console.warn(why);
    }
}

fn outcome(session: &Session, command: &str, started: Timestamp, done: &Result<(), Failure>) -> Value {
    let failure = done.as_ref().err();
    json!({ "command": command, "succeeded": failure.is_none(), "exit_code": failure.map_or(0, |failure| exit_code(failure.kind)),
        "kind": failure.map(|failure| failure.kind.word()), "message": failure.map(|failure| &failure.message),
        "host": host(), "started": started, "ended": session.clock.now(), "results": session.console.last_objects() })
}

/// Waits for it. The error says what went wrong.
fn run(session: &Session, hook: &str, outcome: &Value) -> Result<(), String> {
    let failed = |what: &str| format!("the command {hook:?} {what}");
    let mut command = Command::new("/bin/sh");
    // A group of its own, so that all of it can be ended.
    command.args(["-c", hook]).stdin(Stdio::piped()).process_group(0);
    // What it prints is not a result of this program.
    command.stdout(std::io::stderr());
    for secret in SECRETS {
        command.env_remove(secret);
    }
    let mut child = command.spawn().map_err(|error| failed(&format!("cannot be started: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        let outcome = outcome.to_string();
        // One that does not read is not wrong, and must not be waited for.
        std::thread::spawn(move || writeln!(input, "{outcome}"));
    }
    let began = session.clock.monotonic();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(&format!("failed: {status}"))),
            Ok(None) if session.clock.monotonic().saturating_sub(began) > PATIENCE => {
                end(&mut child);
                return Err(failed("took longer than five minutes and was ended"));
            }
            Ok(None) => std::thread::sleep(LOOK_EVERY),
            Err(error) => return Err(failed(&format!("cannot be waited for: {error}"))),
        }
    }
}

fn end(child: &mut Child) {
    // Gone already is as good.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}
