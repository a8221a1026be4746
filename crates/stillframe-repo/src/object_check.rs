//! Checking every stored object against its own hash: needs no keys and no passphrase.

use std::sync::Arc;

use serde::Serialize;
use stillframe_storage::object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::pack_check::check_frame;

/// A stored object that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectFinding {
    /// Its name in the store.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
}

/// What checking all objects found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ObjectReport {
    /// Objects read.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The damaged ones.
    pub findings: Vec<ObjectFinding>,
}

/// Reads every object of the repository in `store` and compares its hash. This finds objects that rotted or were cut
/// short; that none is missing, only [`crate::Repository::verify`] can tell. `progress` is told the bytes read.
pub async fn check_objects(
    store: Arc<dyn ObjectStore>,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<ObjectReport> {
    let io = ObjectIo::new(store);
    let mut report = ObjectReport::default();
    match io.get_config().await {
        Ok(_) => {}
        Err(error) if error.is_absent() => return Err(Error::NotARepository),
        Err(error) => return Err(error),
    }
    for kind in Kind::ALL {
        for listed in io.list(kind).await? {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let name = ObjectName::new(kind, listed.id);
            // Deleted since it was listed: then there is nothing to check.
            let Some(size) = io.size(name).await? else { continue };
            if let Some(why) = check_frame(&io, name, size).await? {
                report.findings.push(ObjectFinding { object: name.to_string(), why });
            }
            report.objects += 1;
            report.bytes += size;
            progress(report.bytes);
        }
    }
    Ok(report)
}
