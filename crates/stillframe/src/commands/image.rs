//! `image create` and `image validate`.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use stillframe_capture::{
    CaptureError, Engine, SNAPSHOT_FILE, Snapshot, Source, detect, validate, validate_image,
};
use stillframe_engine::{ImageOptions, create_image};
use stillframe_jobs::Phase;
use stillframe_storage::path_text;
use tokio_util::sync::CancellationToken;

use crate::cli::{CaptureArgs, ImageCommand};
use crate::commands::{from_here, parse_source};
use crate::failure::{Failure, Kind};
use crate::repository::refuse_in_repository;
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count, span};

/// Runs either.
pub async fn run(session: &Session, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Create { source, to, copy, capture } => {
            let options = ImageOptions { capture: capture.into(), reserve: capture.reserve(), copy: *copy };
            create(session, source, to, capture, &options).await
        }
        ImageCommand::Validate { dir, engine } => check(session, dir, engine.as_deref()),
    }
}

async fn create(
    session: &Session,
    source: &OsStr,
    to: &Path,
    capture: &CaptureArgs,
    options: &ImageOptions,
) -> Result<(), Failure> {
    let to = from_here(to);
    let subject = |source: &dyn Display| format!("{source} to {}", to.display());
    let prepared = prepare(source, &to, capture);
    let source = session.recorded("image", &subject(&path_text(source)), prepared)?;
    let phases = [Phase::Capturing, Phase::Sealing];
    let outcome = session
        .run_job("image", &subject(&source), &phases, full_share(), async |job, surroundings| {
            let outcome = create_image(&source, &to, options, job, surroundings).await?;
            let (window_us, attempts) = (outcome.snapshot.window_us, outcome.snapshot.attempts);
            Ok((outcome, json!({ "to": path_text(&to), "window_us": window_us, "attempts": attempts })))
        })
        .await?;
    let snapshot = &outcome.snapshot;
    tell_weakening(session, snapshot);
    let total: u64 = snapshot.files.iter().map(|file| file.size).sum();
    session.console.line(format!(
        "image of {source} at {} is in {}: {}, {}, window {}",
        snapshot.instant,
        to.display(),
        count(snapshot.files.len() as u64, "file"),
        bytes(total),
        span(Duration::from_micros(snapshot.window_us)),
    ));
    if outcome.linked {
        session.console.answer(
            "its tables are hard links to the live ones: do not change owner, mode or bytes of its files (--copy makes others)",
        );
    }
    outcome.remarks.iter().for_each(|remark| session.console.answer(remark));
    session.console.object(
        "image",
        json!({ "url": source.to_string(), "to": path_text(&to), "instant": snapshot.instant,
            "files": snapshot.files.len(), "bytes": total, "window_us": snapshot.window_us,
            "attempts": snapshot.attempts, "linked": outcome.linked, "remarks": outcome.remarks,
            "weakening": snapshot.weakening }),
    );
    Ok(())
}

fn prepare(source: &OsStr, to: &Path, capture: &CaptureArgs) -> Result<Source, Failure> {
    let source = parse_source(source)?;
    capture.check([&source])?;
    refuse_in_repository("--to", to)?;
    Ok(source)
}

/// Says what makes the guarantee weaker.
fn tell_weakening(session: &Session, snapshot: &Snapshot) {
    for weakening in &snapshot.weakening {
        session.console.warn(format!("{}: {}", weakening.setting, weakening.effect));
    }
}

fn check(session: &Session, dir: &Path, engine: Option<&str>) -> Result<(), Failure> {
    let given = engine.map(given_engine).transpose()?;
    if !dir.exists() {
        return Err(Failure::new(Kind::Usage, format!("{}: no such file or directory", dir.display())));
    }
    // Ctrl-C ends the process: nothing is written that somebody would want cleared up.
    let never = &CancellationToken::new();
    let described = match (Snapshot::read(dir), given) {
        (Ok(snapshot), None) => snapshot,
        // Whoever says what it is means the database as it is now, which need not be the image that was taken.
        (_, Some(_)) => None,
        (Err(error @ CaptureError::UnknownFormat { .. }), None) => return Err(error.into()),
        (Err(error), None) => {
            let failure = damage(error);
            let message = format!("{}; if it is something else, say what with --engine", failure.message);
            return Err(Failure { message, ..failure });
        }
    };
    let (engine, report) = match (described, given) {
        (Some(snapshot), _) => (snapshot.engine, validate_image(&snapshot, dir, never).map_err(|error| {
            let failure = damage(error);
            let engine = snapshot.engine.name();
            let message = format!(
                "{} (as {SNAPSHOT_FILE} has it; to check what its engine has made of it since: --engine {engine})",
                failure.message
            );
            Failure { message, ..failure }
        })?),
        (None, Some(engine)) => (engine, validate(engine, dir, never).map_err(damage)?),
        (None, None) => {
            let (engine, place) = recognised(dir)?;
            (engine, validate(engine, &place, never).map_err(damage)?)
        }
    };
    report.remarks.iter().for_each(|remark| session.console.warn(remark));
    session.console.line(format!(
        "{} is a sound {engine} image: {}, {}",
        dir.display(),
        count(report.files, "file"),
        bytes(report.bytes)
    ));
    session.console.object(
        "validated",
        json!({ "dir": path_text(dir), "engine": engine.name(), "files": report.files, "bytes": report.bytes, "remarks": report.remarks }),
    );
    Ok(())
}

/// What `dir` is, or the one database file in it: a restored SQLite database comes in a directory.
fn recognised(dir: &Path) -> Result<(Engine, PathBuf), Failure> {
    if let Some(engine) = detect(dir)? {
        return Ok((engine, dir.to_owned()));
    }
    let unreadable = |error| Failure::new(Kind::Failed, format!("cannot list {}: {error}", dir.display()));
    let mut found = Vec::new();
    if dir.is_dir() {
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_file() && detect(&path)? == Some(Engine::Sqlite) {
                found.push(path);
            }
        }
    }
    match found.as_slice() {
        [file] => Ok((Engine::Sqlite, file.clone())),
        [] => Err(Failure::new(
            Kind::Usage,
            format!(
                "{}: neither {SNAPSHOT_FILE} nor a known database; say which with --engine",
                dir.display()
            ),
        )),
        [one, ..] => Err(Failure::new(
            Kind::Usage,
            format!(
                "{}: several databases are in it; name one, for example {}",
                dir.display(),
                one.display()
            ),
        )),
    }
}

fn given_engine(name: &str) -> Result<Engine, Failure> {
    Engine::named(name).ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            format!("{name:?} is not an engine; write rocksdb, leveldb, fjall, sqlite or files"),
        )
    })
}

/// What is wrong with an image is damage.
fn damage(error: CaptureError) -> Failure {
    let damage = matches!(
        error,
        CaptureError::Corrupt { .. } | CaptureError::Vanished { .. } | CaptureError::NotADatabase { .. }
    );
    let failure = Failure::from(error);
    if damage { Failure { kind: Kind::Damaged, ..failure } } else { failure }
}
