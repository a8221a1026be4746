//! One look at a database that may be moving.

use std::collections::BTreeMap;
use std::time::Duration;

use stillframe_storage::{RelativePath, failpoint};

use crate::image::ImageBuilder;
use crate::pin::{SourceDir, os};
use crate::window::Attempt;
use crate::{CaptureError, Context};

use super::journals::{Behind, Journals, Listed, Look, missing_between};
use super::pointers::Pointers;
use super::sabotage::Sabotage;
use super::tree::{Moved, Tree};

/// How often the same doubt about a journal must come up before it is called damage: a batch that is being written at the
/// moment of the copy may look like it once.
const DOUBTS: u32 = 4;

/// What is kept from attempt to attempt.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) root: SourceDir,
    keyspaces: SourceDir,
    pub(super) builder: ImageBuilder,
    /// By keyspace: read and pinned for the pointer that each carries.
    pub(super) trees: BTreeMap<u64, Tree>,
    /// Checksum of what each pin was made for.
    pinned: BTreeMap<RelativePath, u128>,
    pub(super) journals: Journals,
    doubt: Option<(String, u32)>,
    without_journal: u32,
    sabotage: Sabotage,
}

/// What an accepted attempt found, beside the trees.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) pointers: Pointers,
    pub(super) journals: Listed,
    /// From the first read of the pointers to the last.
    pub(super) window: Duration,
}

impl Attempts {
    pub(super) fn new(
        root: SourceDir,
        builder: ImageBuilder,
        sabotage: Sabotage,
    ) -> Result<Self, CaptureError> {
        let keyspaces = SourceDir::open(&root.path().join("keyspaces"))?;
        let cancel = builder.staging.cancel.clone();
        let scratch = builder.staging.scratch_dir("journals")?;
        Ok(Self {
            root,
            keyspaces,
            builder,
            trees: BTreeMap::new(),
            pinned: BTreeMap::new(),
            journals: Journals::new(scratch, cancel),
            doubt: None,
            without_journal: 0,
            sabotage,
        })
    }

    /// What can be done before the window.
    pub(super) fn prepare(&mut self) -> Result<(), CaptureError> {
        self.journals.prepare(&self.root)
    }

    /// Reads the pointers, pins what they need, copies what follows the last whole batch of the newest journal, and reads the
    /// pointers again.
    pub(super) fn attempt(&mut self, context: &Context<'_>) -> Result<Attempt<Accepted>, CaptureError> {
        let began = context.clock.monotonic();
        let before = Pointers::read(&self.keyspaces)?;
        self.trees.retain(|id, _| before.by_keyspace.contains_key(id));
        for (&id, pointer) in &before.by_keyspace {
            context.check_cancelled()?;
            let known = self.trees.get(&id).is_some_and(|tree| tree.pointer.current == pointer.current);
            if known {
                continue;
            }
            self.trees.remove(&id);
            let tree = match Tree::load(&self.keyspaces, id, *pointer)? {
                Ok(tree) => tree,
                Err(Moved(what)) => return Ok(Attempt::Moved(what)),
            };
            if let Err(Moved(what)) =
                tree.pin(&self.root, &self.keyspaces, &mut self.builder, &mut self.pinned)?
            {
                return Ok(Attempt::Moved(what));
            }
            self.trees.insert(id, tree);
        }
        failpoint("fjall::pinned");
        if self.sabotage == Sabotage::NoSecondLook {
            self.sabotage.dawdle(self.root.path());
        }
        let mut journals = match self.journals.look(&self.root, self.sabotage)? {
            Look::Found(journals) => journals,
            Look::Fleeting => return Ok(Attempt::Moved("the newest journal went away".to_owned())),
            Look::Nothing => return self.no_journal(),
        };
        self.without_journal = 0;
        failpoint("fjall::journals-copied");
        let after = Pointers::read(&self.keyspaces)?;
        let window = context.clock.monotonic().saturating_sub(began);
        if self.sabotage != Sabotage::NoSecondLook
            && let Some(moved) = before.difference(&after)
        {
            return Ok(Attempt::Moved(moved));
        }
        if matches!(self.sabotage, Sabotage::LateJournals | Sabotage::BlockRoundedEnds) {
            self.sabotage.dawdle(self.root.path());
            self.journals.copy_late(&mut journals, self.sabotage)?;
        }
        // A listing that runs beside a rotation shows all that were there before it began, so this does not pass.
        if let Some(what) = missing_between(journals.numbers.iter().copied()) {
            return self.doubtful(what, &journals);
        }
        if let Behind::Doubtful(what) = self.journals.judge(&journals)? {
            return self.doubtful(what, &journals);
        }
        Ok(Attempt::Accepted(Accepted { pointers: before, journals, window }))
    }

    /// A listing may miss a journal that is made and one that is deleted while it runs, but not again and again.
    fn no_journal<T>(&mut self) -> Result<Attempt<T>, CaptureError> {
        if self.root.stat(os("version"))?.is_none() {
            return Err(CaptureError::Vanished { path: self.root.path().to_owned() });
        }
        self.without_journal += 1;
        if self.without_journal <= DOUBTS {
            return Ok(Attempt::Moved("no journal was listed".to_owned()));
        }
        Err(CaptureError::Corrupt {
            path: self.root.path().to_owned(),
            what: "it has no journal (N.jnl), and without one the engine opens it and shows nothing to snapshots"
                .to_owned(),
        })
    }

    fn doubtful<T>(&mut self, what: String, journals: &Listed) -> Result<Attempt<T>, CaptureError> {
        let times = match self.doubt.take() {
            Some((before, times)) if before == what => times + 1,
            _ => 1,
        };
        if times >= DOUBTS {
            let newest = journals.numbers.last().map_or(0, |number| *number);
            return Err(CaptureError::Corrupt { path: self.root.path().join(format!("{newest}.jnl")), what });
        }
        self.doubt = Some((what.clone(), times));
        Ok(Attempt::Moved(format!("a journal was being written: {what}")))
    }

    /// The directory `keyspaces` itself.
    pub(super) fn keyspaces_meta(&self) -> Result<crate::pin::FileMeta, CaptureError> {
        let gone = || CaptureError::Vanished { path: self.keyspaces.path().to_owned() };
        self.root.stat(os("keyspaces"))?.ok_or_else(gone)
    }
}
