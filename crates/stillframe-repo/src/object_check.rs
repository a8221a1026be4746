//! Checking every stored object against its own hash: needs no keys and no passphrase.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use stillframe_storage::object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::id::ObjectId;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::pack_check::check_frame;
use crate::repository::read_config;

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
    /// What is damaged, or must be there and is not.
    pub findings: Vec<ObjectFinding>,
}

/// Reads every object of the repository in `store` and compares its hash. This finds objects that rotted or were cut
/// short, a description that cannot be read, that there is no key, and sealed backups without a manifest; that no pack is missing, only
/// [`crate::Repository::verify`] can tell. `progress` is told the bytes read.
pub async fn check_objects(
    store: Arc<dyn ObjectStore>,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<ObjectReport> {
    let io = ObjectIo::new(store);
    let mut report = ObjectReport::default();
    match read_config(&io).await {
        Ok(_) => {}
        Err(Error::Damaged { object, why }) => report.findings.push(ObjectFinding { object, why }),
        Err(error) => return Err(error),
    }
    let mut present: BTreeMap<Kind, BTreeSet<ObjectId>> = BTreeMap::new();
    for kind in Kind::ALL {
        for listed in io.list(kind).await? {
            if matches!(kind, Kind::Keys | Kind::Manifest | Kind::Sealed) {
                present.entry(kind).or_default().insert(listed.id);
            }
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
    if !present.contains_key(&Kind::Keys) {
        let why = "no key of this repository is there".to_owned();
        report.findings.push(ObjectFinding { object: Kind::Keys.directory().to_owned(), why });
    }
    let manifests = present.remove(&Kind::Manifest).unwrap_or_default();
    for id in present.remove(&Kind::Sealed).unwrap_or_default().difference(&manifests) {
        let manifest = ObjectName::new(Kind::Manifest, *id);
        // Asked once more: it may be newer than the list of manifests.
        if io.size(manifest).await?.is_none() {
            let why = "it is missing, and was sealed".to_owned();
            report.findings.push(ObjectFinding { object: manifest.to_string(), why });
        }
    }
    Ok(report)
}
