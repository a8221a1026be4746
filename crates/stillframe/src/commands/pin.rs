//! `pin` and `unpin`.

use serde_json::json;
use stillframe_repo::Pin;

use crate::cli;
use crate::failure::Failure;
use crate::place::host;
use crate::repository::{open_to_write, pick};
use crate::session::Session;

/// Protects one backup.
pub async fn pin(session: &Session, args: &cli::Pin) -> Result<(), Failure> {
    let (repo, _uploads) = open_to_write(&args.repo).await?;
    let id = pick(session, &repo, &args.backup, &args.labels).await?;
    let pin = Pin { why: args.why.clone(), since: session.clock.now(), host: host() };
    repo.pin(id, &pin).await?;
    session.console.line(format!("backup {id} is pinned: it is not forgotten until `stillframe unpin {id}`"));
    session.console.object("pinned", json!({ "backup": id.to_string(), "pinned": true, "why": pin.why }));
    Ok(())
}

/// Takes the protection away.
pub async fn unpin(session: &Session, args: &cli::Unpin) -> Result<(), Failure> {
    let (repo, _uploads) = open_to_write(&args.repo).await?;
    let id = pick(session, &repo, &args.backup, &args.labels).await?;
    let was = if repo.unpin(id).await? { "is not pinned any more" } else { "was not pinned" };
    session.console.line(format!("backup {id} {was}"));
    session.console.object("pinned", json!({ "backup": id.to_string(), "pinned": false, "why": null }));
    Ok(())
}
