//! `image create` and `image validate`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use stillframe_capture::{
    CaptureError, Engine, SNAPSHOT_FILE, Snapshot, SnapshotFile, Source, detect, validate,
};
use stillframe_engine::{ImageOptions, create_image};
use stillframe_jobs::Phase;

use crate::cli::{CaptureArgs, ImageCommand};
use crate::commands::parse_source;
use crate::failure::{Failure, Kind};
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
    source: &str,
    to: &Path,
    capture: &CaptureArgs,
    options: &ImageOptions,
) -> Result<(), Failure> {
    let source = parse_source(source)?;
    capture.check([&source])?;
    let phases = [Phase::Capturing, Phase::Sealing];
    let snapshot = session
        .run_job("image", &source.to_string(), &phases, full_share(), async |job, surroundings| {
            let snapshot = create_image(&source, to, options, job, surroundings).await?;
            let outcome = json!({ "to": to, "window_us": snapshot.window_us, "attempts": snapshot.attempts });
            Ok((snapshot, outcome))
        })
        .await?;
    tell_weakening(session, &snapshot);
    let total: u64 = snapshot.files.iter().map(|file| file.size).sum();
    session.console.line(format!(
        "image of {source} at {} is in {}: {}, {}, window {}",
        snapshot.instant,
        to.display(),
        count(snapshot.files.len() as u64, "file"),
        bytes(total),
        span(Duration::from_micros(snapshot.window_us)),
    ));
    let shared = |file: &SnapshotFile| {
        std::fs::metadata(file.path.below(to)).is_ok_and(|meta| meta.is_file() && meta.nlink() > 1)
    };
    if snapshot.files.iter().any(shared) {
        session.console.line(
            "its tables are hard links to the live ones: do not change owner, mode or bytes of its files (--copy makes others)",
        );
    }
    for directory in &snapshot.directories {
        let of_it = |file: &&SnapshotFile| file.directory == directory.name;
        let below = |file: &SnapshotFile| file.path.as_path().starts_with(&directory.name);
        let place = if snapshot.files.iter().find(of_it).is_some_and(below) {
            to.join(&directory.name)
        } else {
            to.to_owned()
        };
        session.console.answer(format!(
            "files of {} are in {}: open with {} set to it",
            directory.original.display(),
            place.display(),
            directory.option
        ));
    }
    session.console.object(
        "image",
        json!({ "url": source.to_string(), "to": to, "instant": snapshot.instant, "files": snapshot.files.len(),
            "bytes": total, "window_us": snapshot.window_us, "attempts": snapshot.attempts,
            "weakening": snapshot.weakening }),
    );
    Ok(())
}

/// Says what makes the guarantee weaker.
fn tell_weakening(session: &Session, snapshot: &Snapshot) {
    for weakening in &snapshot.weakening {
        session.console.warn(format!("{}: {}", weakening.setting, weakening.effect));
    }
}

fn check(session: &Session, dir: &Path, engine: Option<&str>) -> Result<(), Failure> {
    let engine = match engine {
        Some(name) => parse_engine(name)?,
        None => engine_of(dir)?,
    };
    let report = validate(engine, dir).map_err(|error| {
        let damage = matches!(
            error,
            CaptureError::Corrupt { .. } | CaptureError::Vanished { .. } | CaptureError::NotADatabase { .. }
        );
        let failure = Failure::from(error);
        if damage { Failure { kind: Kind::Damaged, ..failure } } else { failure }
    })?;
    report.remarks.iter().for_each(|remark| session.console.note(remark));
    session.console.line(format!(
        "{} is a sound {engine} image: {}, {}",
        dir.display(),
        count(report.files, "file"),
        bytes(report.bytes)
    ));
    session.console.object(
        "validated",
        json!({ "dir": dir, "engine": engine.name(), "files": report.files, "bytes": report.bytes, "remarks": report.remarks }),
    );
    Ok(())
}

fn parse_engine(name: &str) -> Result<Engine, Failure> {
    let source = format!("{name}:x").parse::<Source>();
    source.map(|source| source.engine).map_err(|_| {
        Failure::new(
            Kind::Usage,
            format!("{name:?} is not an engine; write rocksdb, leveldb, fjall, sqlite or files"),
        )
    })
}

fn engine_of(dir: &Path) -> Result<Engine, Failure> {
    let description = dir.join(SNAPSHOT_FILE);
    match std::fs::read(&description) {
        Ok(json) => {
            let snapshot: Snapshot = serde_json::from_slice(&json).map_err(|error| {
                Failure::new(Kind::Damaged, format!("{} cannot be read: {error}", description.display()))
            })?;
            Ok(snapshot.engine)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || dir.is_file() => detect(dir)?
            .ok_or_else(|| {
                let message = format!(
                    "{}: neither {SNAPSHOT_FILE} nor a known database; say which with --engine",
                    dir.display()
                );
                Failure::new(Kind::Usage, message)
            }),
        Err(error) => {
            let kind = if error.kind() == std::io::ErrorKind::PermissionDenied {
                Kind::Permission
            } else {
                Kind::Failed
            };
            Err(Failure::new(kind, format!("cannot read {}: {error}", description.display())))
        }
    }
}
