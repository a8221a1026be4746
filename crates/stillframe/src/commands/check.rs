//! `check`.

use std::collections::BTreeSet;

use rand::Rng;
use serde_json::json;
use stillframe_engine::check::{check, words};
use stillframe_jobs::Phase;
use stillframe_repo::{CheckReport, ReadData};

use crate::cli::Check;
use crate::failure::{Failure, Kind};
use crate::place::host;
use crate::repository::{open_to_write, place_text};
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count, span};

/// Looks at the whole repository; damage is a failure of its own kind.
pub async fn run(session: &Session, args: &Check) -> Result<(), Failure> {
    let read = match args.read_data_subset {
        _ if args.read_data => ReadData::All,
        Some(part) => ReadData::Part { of_ten_thousand: part.0, seed: rand::rng().next_u64() },
        None => ReadData::Nothing,
    };
    let place = place_text(&args.repo.repo);
    // Which backups lose something is noted there.
    let opened = open_to_write(&args.repo).await;
    let (repo, _uploads) = session.recorded("check", &place, opened)?;
    let began = session.clock.monotonic();
    let phases = [Phase::Transferring];
    let report = session
        .run_job("check", &place, &phases, full_share(), async |job, surroundings| {
            let report = check(&repo, read, &host(), job, surroundings).await?;
            tell(session, &report);
            if report.is_sound() {
                let object = summary(&report);
                Ok((report, object))
            } else {
                Err(Failure::new(Kind::Damaged, damage(&report, repo.damage_is_noted())))
            }
        })
        .await?;
    let looked = if read == ReadData::Nothing {
        "no data read (--read-data reads them)".to_owned()
    } else {
        format!("{} with {} read", count(report.packs_read, "pack"), bytes(report.bytes_read))
    };
    session.console.line(format!(
        "the repository is sound: {}, {} with {}; {looked}; {}",
        count(report.backups, "backup"),
        count(report.packs, "pack"),
        bytes(report.pack_bytes),
        span(session.clock.monotonic().saturating_sub(began)),
    ));
    Ok(())
}

fn tell(session: &Session, report: &CheckReport) {
    for found in &report.findings {
        session.console.answer(words(found));
        session.console.object("finding", json!(found));
    }
    if report.findings_omitted > 0 {
        session.console.answer(format!("and {} more", report.findings_omitted));
    }
    for remark in &report.remarks {
        session.console.note(remark);
    }
    session.console.object("checked", summary(report));
}

fn summary(report: &CheckReport) -> serde_json::Value {
    json!({ "sound": report.is_sound(), "backups": report.backups, "unfinished": report.unfinished, "packs": report.packs,
        "pack_bytes": report.pack_bytes, "chunks": report.chunks, "packs_read": report.packs_read, "bytes_read": report.bytes_read,
        "findings": report.findings.len() as u64 + report.findings_omitted, "remarks": report.remarks })
}

/// What it means, and what to do now.
fn damage(report: &CheckReport, is_noted: bool) -> String {
    let found = count(report.findings.len() as u64 + report.findings_omitted, "finding");
    let losers: BTreeSet<_> = report.findings.iter().filter_map(|found| found.backup).collect();
    let is_of = |kind: &str| report.findings.iter().any(|found| found.finding.object.starts_with(kind));
    let mut advice = Vec::new();
    if !losers.is_empty() {
        advice.push(if is_noted {
            "back up again now: what is damaged in packs your backups from this machine store again (from others: backup --anew)"
        } else {
            "back up with --anew now: the damage could not be noted for later backups"
        });
        advice.push(
            "`stillframe repair snapshots` writes damaged seals anew, and makes whole backups of what is left of the damaged ones",
        );
    }
    if is_of("index/") {
        advice.push("`stillframe repair index` writes the index anew");
    }
    if is_of("keys/") {
        advice.push(
            "`stillframe key remove`, with the whole id, takes a damaged key away; add its passphrase again",
        );
    }
    let what = match losers.len() as u64 {
        0 => "no backup loses anything by it".to_owned(),
        losers => format!("{} damaged", count(losers, "backup")),
    };
    let advice = if advice.is_empty() { String::new() } else { format!("; {}", advice.join("; ")) };
    format!("the repository is damaged: {found}, {what}{advice}")
}
