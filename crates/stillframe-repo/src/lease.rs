//! `leases/<id>`: somebody writes or restores just now. A courtesy: what disregards it costs work, never data.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use stillframe_storage::Clock;
use tokio::task::AbortHandle;

use crate::error::Result;
use crate::layout::{Kind, ObjectName};
use crate::{BackupId, ObjectId, PackId, Repository, json_object};

/// How often one is renewed, and how long work must take to have one.
pub(crate) const EVERY: Duration = Duration::from_secs(30);
/// One that was not renewed for so long, by whichever clock, is nobody's.
const VALID: SignedDuration = SignedDuration::from_mins(15);
/// And is removed by a pruning after so long.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(24);
/// Of more than that, which is two terabytes in the making, not all are spared.
const MAX_PACKS: usize = 65_536;

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// A backup, whose manifest is not there yet.
    Write,
    /// A restore of one.
    Restore,
}

/// Somebody's word that he is at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What he does.
    pub what: LeaseKind,
    /// Since when, by his clock.
    pub since: Timestamp,
    /// When he last said so, by his clock.
    pub renewed: Timestamp,
    /// On which machine.
    #[serde(default)]
    pub host: String,
    /// Packs that a backup relies on, and that no manifest names yet.
    #[serde(default)]
    pub packs: Vec<PackId>,
    /// The backup that is restored.
    #[serde(default)]
    pub backup: Option<BackupId>,
}

impl Lease {
    fn age(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.renewed).abs()
    }
}

/// A backup that is being restored.
#[derive(Debug, Clone, Copy)]
pub struct RestoredBackup<'a> {
    /// Which.
    pub backup: BackupId,
    /// On which machine.
    pub host: &'a str,
    /// By whose clock.
    pub clock: &'a Arc<dyn Clock>,
    /// How often that is said, and after how long for the first time.
    pub every: Duration,
}

impl<'a> RestoredBackup<'a> {
    /// Each half minute.
    pub fn new(backup: BackupId, host: &'a str, clock: &'a Arc<dyn Clock>) -> Self {
        Self { backup, host, clock, every: EVERY }
    }
}

/// Renews a lease until it is dropped or ended. Work that ends soon has none.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    repository: Repository,
    name: ObjectName,
    /// Whether it may be there.
    is_put: Arc<AtomicBool>,
    renewing: AbortHandle,
}

impl LeaseKeeper {
    /// Puts the lease anew each time that so much time has passed; `packs` says what it is about by then.
    pub(crate) fn start(
        repository: &Repository,
        clock: Arc<dyn Clock>,
        every: Duration,
        lease: Lease,
        packs: impl Fn() -> Vec<PackId> + Send + 'static,
    ) -> Self {
        let name = ObjectName::new(Kind::Lease, ObjectId::random());
        let (there, mut lease) = (repository.clone(), lease);
        let is_put = Arc::new(AtomicBool::new(false));
        let putting = Arc::clone(&is_put);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                lease.renewed = clock.now();
                lease.packs = packs();
                let surplus = lease.packs.len().saturating_sub(MAX_PACKS);
                lease.packs.drain(..surplus);
                putting.store(true, Ordering::Release);
                let put = match json_object::encode(there.ring(), name, &lease) {
                    Ok(payload) => there.io().put(name, payload).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = put {
                    // Who may only read goes without.
                    tracing::debug!(%error, "no lease");
                }
            }
        });
        Self { repository: repository.clone(), name, is_put, renewing: renewing.abort_handle() }
    }

    /// The work is done, or given up.
    pub(crate) async fn end(self) {
        self.renewing.abort();
        if self.is_put.load(Ordering::Acquire) {
            // What stays is nobody's in a quarter of an hour.
            let _ = self.repository.io().delete(self.name).await;
        }
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Repository {
    /// Who says that he is at work. What cannot be read says nothing.
    pub async fn leases(&self, now: Timestamp) -> Result<Vec<Lease>> {
        let all = json_object::read_all::<Lease>(self.io(), self.ring(), Kind::Lease).await?;
        Ok(all.into_values().flatten().filter(|lease| lease.age(now) <= VALID).collect())
    }

    /// Packs of backups that are being written.
    pub(crate) async fn leased_packs(&self, now: Timestamp) -> Result<HashSet<PackId>> {
        let leases = self.leases(now).await?;
        let writers = leases.into_iter().filter(|lease| lease.what == LeaseKind::Write);
        Ok(writers.flat_map(|lease| lease.packs).collect())
    }

    /// Says, if `work` takes long, that this backup is being restored, so that nobody forgets it meanwhile without a word.
    pub async fn while_restoring<T>(&self, restored: RestoredBackup<'_>, work: impl Future<Output = T>) -> T {
        let RestoredBackup { backup, host, clock, every } = restored;
        let since = clock.now();
        let lease = Lease {
            what: LeaseKind::Restore,
            since,
            renewed: since,
            host: host.to_owned(),
            packs: Vec::new(),
            backup: Some(backup),
        };
        let keeper = LeaseKeeper::start(self, Arc::clone(clock), every, lease, Vec::new);
        let done = work.await;
        keeper.end().await;
        done
    }

    /// Removes leases that are nobody's.
    pub(crate) async fn tidy_leases(&self, now: Timestamp) -> Result<()> {
        for (id, lease) in json_object::read_all::<Lease>(self.io(), self.ring(), Kind::Lease).await? {
            if lease.is_ok_and(|lease| lease.age(now) > FORGOTTEN) {
                self.io().delete(ObjectName::new(Kind::Lease, id)).await?;
            }
        }
        Ok(())
    }
}
