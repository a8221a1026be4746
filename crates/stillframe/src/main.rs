//! `stillframe`: hot backup of live databases. Wires commands to verbs.
#![forbid(unsafe_code)]
// They panic when nobody takes what they print.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod commands;
mod config;
mod console;
mod demo;
mod failure;
mod hooks;
mod interrupt;
mod log_layer;
mod passphrase;
mod place;
mod repository;
mod session;
mod sizes;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::{Cli, Command};
use crate::console::say;
use crate::failure::{Failure, Kind, exit_code};
use crate::session::Session;
use clap::error::{ContextKind, ContextValue, ErrorKind};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match config::parse(&words) {
        Ok(cli) => cli,
        Err((error, config)) => return refuse(&error, config.as_deref()),
    };
    let session = Arc::new(Session::new(cli.json, cli.quiet));
    log_layer::start(&session.console);
    raise_descriptor_limit();
    if let Err(error) = demand_threads() {
        say(&format!(
            "stillframe: cannot start {THREADS} threads: {error}; raise the limit (ulimit -u, TasksMax of a service, pids.max of a container)"
        ));
        return ExitCode::FAILURE;
    }
    let pace = cli.command.pace();
    if !matches!(cli.command, Command::Backup(_)) {
        pace.apply_to_own_session();
        // With all threads that this one starts. A backup's capture is no time to give way: see there.
        pace.apply_to_this_thread();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || pace.apply_to_this_thread())
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("stillframe: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let started = session.clock.now();
    let done = runtime.block_on(async {
        let done = run(&session, &cli.command).await;
        if let Some((command, hooks)) = cli.command.hooks() {
            hooks::call(&session, hooks, command, started, &done).await;
        }
        done
    });
    match done.and_then(|()| session.console.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            session.console.failure(&failure);
            ExitCode::from(exit_code(failure.kind))
        }
    }
}

/// Help and version are what was asked for; everything else is a mistake, which machines are told of, too.
fn refuse(error: &clap::Error, config: Option<&Path>) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let message = error.render().to_string();
        let object =
            serde_json::json!({ "type": "error", "kind": Kind::Usage.word(), "message": message.trim() });
        // Nobody is left to be told when this fails.
        let _ = writeln!(std::io::stdout().lock(), "{object}");
    }
    let _ = error.print();
    let is_missing = |option: &str| match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) => missing.iter().any(|missing| missing.contains(option)),
        Some(ContextValue::String(missing)) => missing.contains(option),
        _ => false,
    };
    if error.kind() == ErrorKind::MissingRequiredArgument && is_missing("--repo") {
        say("  tip: the repository is given with -r, or once for all in STILLFRAME_REPO");
    }
    if let Some(config) = config.filter(|_| error.use_stderr()) {
        say(&format!("  note: what is not given is as {} says", config.display()));
    }
    if error.use_stderr() { ExitCode::from(exit_code(Kind::Usage)) } else { ExitCode::SUCCESS }
}

async fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    if !matches!(command, Command::Demo | Command::DemoWriter(_)) {
        interrupt::start(std::sync::Arc::clone(&session.console));
    }
    if command.writes_to_a_repository() {
        // What goes into a repository is for its owner: without encryption it is as good as the sources.
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    }
    match command {
        Command::Backup(options) => commands::backup::run(session, options).await,
        Command::Restore(options) => commands::restore::run(session, options).await,
        Command::Snapshots(options) => commands::snapshots::run(session, options).await,
        Command::Show(options) => commands::show::run(session, options).await,
        Command::Verify(options) => commands::verify::run(session, options).await,
        Command::Check(options) => commands::check::run(session, options).await,
        Command::Repair(command) => commands::repair::run(session, command).await,
        Command::Forget(options) => commands::forget::run(session, options).await,
        Command::Prune(options) => commands::prune::run(session, options).await,
        Command::Pin(options) => commands::pin::pin(session, options).await,
        Command::Unpin(options) => commands::pin::unpin(session, options).await,
        Command::Repo(command) => commands::repo::run(session, command).await,
        Command::Key(command) => commands::key::run(session, command).await,
        Command::Image(command) => commands::image::run(session, command).await,
        Command::Jobs(options) => commands::jobs::run(session, options).await,
        Command::Demo => demo::run(session).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::public_command(), "stillframe", &mut script);
            session.console.script(&script);
            Ok(())
        }
        Command::DemoWriter(options) => {
            demo::writer(&options.arguments).map_err(|message| Failure::new(Kind::Failed, message))
        }
    }
}

/// The most that a command has at once, but for workers.
const THREADS: usize = 24;

/// Under a limit the libraries below end the program, or wait for what will never be there; so it is looked for first.
fn demand_threads() -> std::io::Result<()> {
    let all_there = Arc::new(std::sync::Barrier::new(THREADS + 1));
    for _ in 0..THREADS {
        let all_there = Arc::clone(&all_there);
        // Where one cannot be started, those that wait end with the process.
        std::thread::Builder::new().stack_size(32 << 10).spawn(move || all_there.wait())?;
    }
    all_there.wait();
    Ok(())
}

/// Where links are refused, every pinned table is an open file.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
