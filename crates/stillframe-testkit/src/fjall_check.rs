//! Every row of a copied fjall database against the function that wrote it.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::fjall_load::{COUNTER, Churn, FjallLoad, Origin, PARTNER};
use crate::{Marks, ScratchCopy, Violation, judge};

/// A counter may be damaged too: more missing rows than this are not counted.
const MISSING_COUNTED: u64 = 1 << 24;

impl FjallLoad {
    /// Copies the database `dir` below `scratch`, opens the copy and compares every row. Returns the number of the batch that it
    /// stands at; what is in it is then exactly what the batches up to that number leave.
    pub fn check(&self, dir: &Path, scratch: &Path) -> Result<u64, Violation> {
        self.check_all(dir, scratch).map(|(standing, _)| standing)
    }

    /// Like [`Self::check`], and judges where the copy stands, for the batches and for the churning thread: `before` is read before
    /// the copy is taken, `after` when it is done.
    pub fn check_and_judge(
        &self,
        dir: &Path,
        scratch: &Path,
        before: &LoadMarks,
        after: &LoadMarks,
    ) -> Result<u64, Violation> {
        let (standing, churned) = self.check_all(dir, scratch)?;
        judge(standing, before.batches, after.batches)?;
        judge(churned, before.churn, after.churn)?;
        Ok(standing)
    }

    fn check_all(&self, dir: &Path, scratch: &Path) -> Result<(u64, u64), Violation> {
        let copy = ScratchCopy::of_directory(dir, scratch)
            .map_err(|error| Violation::Unreadable(format!("copying {}: {error}", dir.display())))?;
        refuse_strays(&copy.path())?;
        let db = Database::builder(copy.path()).worker_threads(1).open().map_err(unreadable)?;
        let standing = self.check_batches(&db)?;
        let churned = match self.churn {
            Some(churn) => self.check_churn(&db, churn)?,
            None => 0,
        };
        Ok((standing, churned))
    }

    fn check_batches(&self, db: &Database) -> Result<u64, Violation> {
        let mut parts = Vec::new();
        let mut standings = Vec::new();
        for number in 0..self.keyspaces {
            let name = Self::keyspace_name(number);
            let keyspace = existing(db, &name)?;
            let standing = keyspace.as_ref().map_or(Ok(0), |keyspace| counter(&name, keyspace))?;
            standings.push((name.clone(), standing));
            parts.push((u64::from(number), name, keyspace));
        }
        let standing = standings.iter().map(|(_, n)| *n).max().unwrap_or(0);
        for (_, name, keyspace) in &parts {
            if keyspace.is_none() && standing > 0 {
                return Err(Violation::PartMissing { part: format!("keyspace {name}") });
            }
        }
        if standings.iter().any(|(_, n)| *n != standing) {
            return Err(Violation::Torn { standings });
        }
        for (number, name, keyspace) in &parts {
            if let Some(keyspace) = keyspace {
                self.check_rows(*number, name, keyspace, standing)?;
            }
        }
        Ok(standing)
    }

    fn check_rows(
        &self,
        number: u64,
        name: &str,
        keyspace: &Keyspace,
        standing: u64,
    ) -> Result<(), Violation> {
        let part = || format!("keyspace {name}");
        let mut found = Vec::new();
        for guard in keyspace.iter() {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            if &*key == COUNTER {
                continue;
            }
            let origin =
                self.origin(&key).ok_or_else(|| Violation::Foreign { part: part(), row: hex(&key) })?;
            let Origin { batch, row } = origin;
            if batch > standing {
                return Err(Violation::FromTheFuture { part: part(), transaction: batch, standing });
            }
            if let Some(removed_by) = self.remover(origin, standing) {
                return Err(Violation::Undead { part: part(), transaction: batch, row, removed_by });
            }
            let expected = self.value(number, origin);
            if *value != *expected {
                let found = describe_difference(&value, &expected);
                return Err(Violation::WrongValue { part: part(), transaction: batch, row, found });
            }
            found.push(origin);
        }
        // Keys are distinct and each is expected, so the number of rows decides; only a hole costs the walk below.
        found.sort_unstable();
        let expected =
            (1..=standing).flat_map(|batch| (0..u64::from(self.rows)).map(move |row| Origin { batch, row }));
        let expected = expected.filter(|origin| self.remover(*origin, standing).is_none());
        match first_missing(expected, &found) {
            None => Ok(()),
            Some((Origin { batch, row }, missing)) => {
                Err(Violation::Hole { part: part(), transaction: batch, row, missing, standing })
            }
        }
    }

    fn check_churn(&self, db: &Database, churn: Churn) -> Result<u64, Violation> {
        let Some(partner) = existing(db, PARTNER)? else {
            let none_exists = db.list_keyspace_names().iter().all(|name| !name.starts_with("tmp"));
            return if none_exists {
                Ok(0)
            } else {
                Err(Violation::PartMissing { part: format!("keyspace {PARTNER}") })
            };
        };
        let standing = counter(PARTNER, &partner)?;
        self.check_churn_rows(PARTNER, &partner, 1, standing, standing)?;
        for name in db.list_keyspace_names().iter().filter(|name| name.starts_with("tmp")) {
            let index = name.trim_start_matches("tmp").parse::<u64>().unwrap_or(u64::MAX);
            if let Some(why) = churn.objection(index, standing) {
                return Err(Violation::PartUnexpected { part: format!("keyspace {name}"), why });
            }
            if let Some(keyspace) = existing(db, name)? {
                let first = index * churn.batches + 1;
                self.check_churn_rows(
                    name,
                    &keyspace,
                    first,
                    standing.min(first + churn.batches - 1),
                    standing,
                )?;
            }
        }
        for index in churn.must_exist(standing) {
            if !db.keyspace_exists(&Self::churn_name(index)) {
                return Err(Violation::PartMissing { part: format!("keyspace {}", Self::churn_name(index)) });
            }
        }
        Ok(standing)
    }

    fn check_churn_rows(
        &self,
        name: &str,
        keyspace: &Keyspace,
        first: u64,
        last: u64,
        standing: u64,
    ) -> Result<(), Violation> {
        let part = || format!("keyspace {name}");
        let mut found = Vec::new();
        for guard in keyspace.iter() {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            if &*key == COUNTER && name == PARTNER {
                continue;
            }
            let foreign = || Violation::Foreign { part: part(), row: hex(&key) };
            let number = <[u8; 8]>::try_from(&key[..]).map(u64::from_be_bytes).map_err(|_| foreign())?;
            if number > last {
                return Err(Violation::FromTheFuture { part: part(), transaction: number, standing });
            }
            if number < first {
                return Err(foreign());
            }
            let expected = Churn::value(self.seed, number);
            if *value != *expected {
                let found = describe_difference(&value, &expected);
                return Err(Violation::WrongValue { part: part(), transaction: number, row: 0, found });
            }
            found.push(number);
        }
        match first_missing(first..=last, &found) {
            None => Ok(()),
            Some((transaction, missing)) => {
                Err(Violation::Hole { part: part(), transaction, row: 0, missing, standing })
            }
        }
    }
}

/// The marks of both ledgers of a load at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadMarks {
    /// Of the batches.
    pub batches: Marks,
    /// Of the churning thread.
    pub churn: Marks,
}

impl LoadMarks {
    /// Reads both.
    pub fn read(ledger: &Path) -> Result<Self, crate::LedgerError> {
        Ok(Self {
            batches: Marks::read(ledger)?,
            churn: Marks::read(&crate::fjall_writer::churn_ledger(ledger))?,
        })
    }
}

/// The order of the churning thread is: make keyspace i, delete keyspace i - 1 - keep, write the batches of i.
impl Churn {
    /// The keyspace that batch `standing` belongs to, and whether that batch is its last.
    fn newest(&self, standing: u64) -> Option<(u64, bool)> {
        let (newest, batch) = if standing == 0 { return None } else { self.place(standing) };
        Some((newest, batch + 1 == self.batches))
    }

    /// The keyspaces that are there when the thread stands at `standing`.
    fn must_exist(&self, standing: u64) -> std::ops::Range<u64> {
        match self.newest(standing) {
            None => 0..0,
            // The next one may have begun by deleting.
            Some((newest, true)) => (newest + 1).saturating_sub(self.keep)..newest + 1,
            Some((newest, false)) => newest.saturating_sub(self.keep)..newest + 1,
        }
    }

    /// Why keyspace `index` must not be there when the thread stands at `standing`.
    fn objection(&self, index: u64, standing: u64) -> Option<String> {
        let youngest = match self.newest(standing) {
            None => 0,
            Some((newest, full)) => newest + u64::from(full),
        };
        if index > youngest {
            return Some(format!("its time comes after batch {standing}"));
        }
        let gone_before = (index + self.keep + 1) * self.batches + 1;
        (standing >= gone_before)
            .then(|| format!("it was deleted before batch {gone_before}, and the copy stands at {standing}"))
    }
}

/// The first of `expected` (ascending) that is not in `found` (ascending, all of them expected), and how many are not.
fn first_missing<T: PartialEq + Copy>(expected: impl Iterator<Item = T>, found: &[T]) -> Option<(T, u64)> {
    let mut found = found.iter().peekable();
    let mut first = None;
    let mut missing = 0;
    for item in expected {
        if found.next_if(|next| **next == item).is_none() {
            first.get_or_insert(item);
            missing += 1;
            if missing > MISSING_COUNTED {
                break;
            }
        }
    }
    first.map(|first| (first, missing))
}

/// The engine does not refuse what it does not know in `keyspaces/`: it aborts the process.
fn refuse_strays(db: &Path) -> Result<(), Violation> {
    let listed = std::fs::read_dir(db.join("keyspaces"))
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let names = listed.map_err(|error| Violation::Unreadable(format!("keyspaces: {error}")))?;
    match names.iter().find(|name| name.to_str().is_none_or(|name| name.parse::<u64>().is_err())) {
        None => Ok(()),
        Some(name) => Err(Violation::PartUnexpected {
            part: format!("keyspaces/{}", name.display()),
            why: "the engine makes no such name and cannot open with it".into(),
        }),
    }
}

fn existing(db: &Database, name: &str) -> Result<Option<Keyspace>, Violation> {
    if !db.keyspace_exists(name) {
        return Ok(None);
    }
    db.keyspace(name, KeyspaceCreateOptions::default).map(Some).map_err(unreadable)
}

fn counter(name: &str, keyspace: &Keyspace) -> Result<u64, Violation> {
    let Some(value) = keyspace.get(COUNTER).map_err(unreadable)? else { return Ok(0) };
    let found = || Violation::WrongValue {
        part: format!("keyspace {name}"),
        transaction: 0,
        row: 0,
        found: format!("the counter is {} bytes long", value.len()),
    };
    Ok(u64::from_be_bytes(value[..].try_into().map_err(|_| found())?))
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn unreadable(error: fjall::Error) -> Violation {
    Violation::Unreadable(error.to_string())
}

/// Where two values begin to differ.
pub(crate) fn describe_difference(found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    format!("{} bytes instead of {}, differing from byte {at}", found.len(), expected.len())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().take(40).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
