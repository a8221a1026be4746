//! Captures one source into a directory and says how it went.
//!
//! `cargo run --release -p stillframe-capture --example capture_once -- rocksdb:DIR TARGET [--staging DIR] [--wal-dir DIR]
//! [--db-path DIR]... [--cf-path NAME=DIR]... [--deadline SECONDS]`

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillframe_capture::{CaptureOptions, Context, Event, Source, capture, validate};
use stillframe_storage::SystemClock;
use tokio_util::sync::CancellationToken;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (source, target) =
        arguments.next().zip(arguments.next()).ok_or("usage: capture_once SOURCE TARGET")?;
    let source: Source = source.parse()?;
    let mut options = CaptureOptions::default();
    while let Some((flag, value)) = arguments.next().zip(arguments.next()) {
        match flag.as_str() {
            "--staging" => options.staging = Some(value.into()),
            "--wal-dir" => options.wal_dir = Some(value.into()),
            "--db-path" => options.db_paths.push(value.into()),
            "--cf-path" => {
                let (family, path) = value.split_once('=').ok_or("--cf-path NAME=DIR")?;
                options.cf_paths.entry(family.to_owned()).or_default().push(PathBuf::from(path));
            }
            "--deadline" => options.deadline = Duration::from_secs(value.parse()?),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let number = Cell::new(0);
    let random_name = || {
        number.set(number.get() + 1);
        format!("{:08x}{:08x}", std::process::id(), number.get())
    };
    let events = |event: Event| match event {
        Event::Warning(warning) => eprintln!("warning: {warning}"),
        Event::Moved { attempt, what } => eprintln!("attempt {attempt}: {what}"),
        Event::Staging(_) | Event::Copied { .. } => {}
    };
    let cancel = CancellationToken::new();
    let clock = SystemClock::new();
    let context = Context { clock: &clock, cancel: &cancel, events: &events, random_name: &random_name };
    let image =
        capture(std::slice::from_ref(&source), &options, &context)?.pop().ok_or("one source, one image")?;
    let snapshot = image.keep(Path::new(&target), &context)?;
    let report = validate(source.engine, Path::new(&target), &CancellationToken::new())?;
    println!(
        "window_us={} attempts={} files={} bytes={} remarks={:?}",
        snapshot.window_us,
        snapshot.attempts,
        snapshot.files.len(),
        snapshot.files.iter().map(|file| file.size).sum::<u64>(),
        report.remarks
    );
    Ok(())
}
