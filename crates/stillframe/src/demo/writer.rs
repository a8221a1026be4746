//! The writers' side: run in processes of their own, so that they can be killed.

use std::io::Write;
use std::path::Path;

use stillframe_storage::SystemClock;
use stillframe_testkit::{FjallLoad, LoadMarks, Marks, SqliteLoad, Stop};

const USAGE: &str = "write fjall|sqlite LOAD PATH LEDGER [LAST] · check fjall|sqlite LOAD PATH SCRATCH · marks fjall|sqlite LEDGER; \
                     LOAD is JSON, {} for the default";

/// The hidden command `demo-writer`: writes until it is killed, checks a copy, or reads a ledger. Answers are JSON.
pub fn writer(arguments: &[String]) -> Result<(), String> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let clock = SystemClock::new();
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let answer = match arguments.as_slice() {
        ["write", engine, load, path, ledger, last @ ..] => {
            let stop = match last {
                [] => Stop::default(),
                [last] => Stop::at(last.parse().map_err(|error| format!("{last}: {error}"))?),
                _ => return Err(USAGE.to_owned()),
            };
            let (path, ledger) = (Path::new(path), Path::new(ledger));
            let report = match *engine {
                "fjall" => parse::<FjallLoad>(load)?.write(path, ledger, &stop, &clock),
                "sqlite" => parse::<SqliteLoad>(load)?.write(path, ledger, &stop, &clock),
                _ => return Err(USAGE.to_owned()),
            };
            serde_json::to_value(report.map_err(|error| text(&error))?)
        }
        ["check", engine, load, path, scratch] => {
            let (path, scratch) = (Path::new(path), Path::new(scratch));
            let standing = match *engine {
                "fjall" => parse::<FjallLoad>(load)?.check(path, scratch),
                "sqlite" => parse::<SqliteLoad>(load)?.check(path, scratch),
                _ => return Err(USAGE.to_owned()),
            };
            let standing = standing.map_err(|error| text(&error))?;
            Ok(serde_json::json!({ "standing": standing }))
        }
        ["marks", "fjall", ledger] => {
            let marks = LoadMarks::read(Path::new(ledger)).map_err(|error| text(&error))?;
            Ok(serde_json::json!({ "batches": marks.batches, "churn": marks.churn }))
        }
        ["marks", "sqlite", ledger] => {
            serde_json::to_value(Marks::read(Path::new(ledger)).map_err(|error| text(&error))?)
        }
        _ => return Err(USAGE.to_owned()),
    };
    let line = format!("{}\n", answer.map_err(|error| text(&error))?);
    std::io::stdout().write_all(line.as_bytes()).map_err(|error| text(&error))
}

fn parse<T: serde::de::DeserializeOwned>(load: &str) -> Result<T, String> {
    serde_json::from_str(load).map_err(|error| format!("the load: {error}"))
}
