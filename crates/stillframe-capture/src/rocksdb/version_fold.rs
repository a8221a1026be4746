//! Folds the edits of a MANIFEST into what is live: tables, blob files and needed logs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::version_edit::{ManifestError, VersionEdit};

/// Bytes of a blob file around its blobs: header and footer.
const BLOB_FILE_FRAME: u64 = 30 + 32;

/// The state of a database after the edits seen so far. Edits are only ever added, so a MANIFEST that grew is folded from
/// where the last fold ended.
#[derive(Debug, Clone)]
pub(crate) struct VersionFold {
    families: BTreeMap<u32, Family>,
    min_log_to_keep: u64,
    previous_log_number: u64,
    next_file_number: Option<u64>,
    last_sequence: Option<u64>,
    log_number_seen: bool,
    /// Logs that the engine tracks in its MANIFEST, with the size of those that are closed and synced.
    tracked_logs: BTreeMap<u64, Option<u64>>,
    tracked_logs_from: u64,
    db_id: Option<Vec<u8>>,
    /// Edits of a group that is not whole yet.
    held: Vec<VersionEdit>,
    edits: u64,
}

/// One column family.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    pub(crate) name: Vec<u8>,
    pub(crate) tables: HashMap<u64, Table>,
    log_number: u64,
    blobs: BTreeMap<u64, Blob>,
    /// How many live tables name each blob file as their oldest.
    linked: BTreeMap<u64, u64>,
}

/// One live table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) level: u32,
    pub(crate) path_id: u32,
    /// Exact length of the file in bytes.
    pub(crate) size: u64,
    pub(crate) unique_id: Option<[u8; 16]>,
    oldest_blob: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Blob {
    count: u64,
    bytes: u64,
    garbage: u64,
}

impl Default for VersionFold {
    fn default() -> Self {
        let default_family = Family { name: b"default".to_vec(), ..Family::default() };
        Self {
            families: BTreeMap::from([(0, default_family)]),
            min_log_to_keep: 0,
            previous_log_number: 0,
            next_file_number: None,
            last_sequence: None,
            log_number_seen: false,
            tracked_logs: BTreeMap::new(),
            tracked_logs_from: 0,
            db_id: None,
            held: Vec::new(),
            edits: 0,
        }
    }
}

impl VersionFold {
    /// Reads and applies one edit.
    pub(crate) fn push(&mut self, edit: &[u8]) -> Result<(), ManifestError> {
        let edit = VersionEdit::decode(edit)?;
        self.edits += 1;
        match (edit.group_remaining, self.held.last().and_then(|held| held.group_remaining)) {
            (None | Some(0), None) => self.apply(&edit),
            (Some(_), None) => {
                self.held.push(edit);
                Ok(())
            }
            (Some(remaining), Some(before)) if before.checked_sub(1) == Some(remaining) => {
                self.held.push(edit);
                if remaining > 0 {
                    return Ok(());
                }
                std::mem::take(&mut self.held).iter().try_for_each(|edit| self.apply(edit))
            }
            (_, Some(_)) => Err(ManifestError::corrupt("an atomic group of edits is interrupted")),
        }
    }

    fn apply(&mut self, edit: &VersionEdit) -> Result<(), ManifestError> {
        self.apply_globals(edit);
        if let Some(name) = &edit.family_added {
            let family = Family { name: name.clone(), ..Family::default() };
            if self.families.insert(edit.family, family).is_some() {
                return Err(ManifestError::Corrupt(format!("column family {} is added twice", edit.family)));
            }
        }
        if edit.family_dropped {
            if self.families.remove(&edit.family).is_none() {
                return Err(ManifestError::Corrupt(format!(
                    "column family {} is dropped, but there is none",
                    edit.family
                )));
            }
            return Ok(());
        }
        match self.families.get_mut(&edit.family) {
            Some(family) => family.apply(edit),
            // A family that was dropped; the engine reads over these.
            None => Ok(()),
        }
    }

    fn apply_globals(&mut self, edit: &VersionEdit) {
        self.log_number_seen |= edit.log_number.is_some();
        self.min_log_to_keep = self.min_log_to_keep.max(edit.min_log_to_keep.unwrap_or(0));
        self.previous_log_number = edit.previous_log_number.unwrap_or(self.previous_log_number);
        self.next_file_number = self.next_file_number.max(edit.next_file_number);
        self.last_sequence = self.last_sequence.max(edit.last_sequence);
        if edit.db_id.is_some() {
            self.db_id.clone_from(&edit.db_id);
        }
        for log in &edit.logs_added {
            if log.number >= self.tracked_logs_from {
                let size = self.tracked_logs.entry(log.number).or_default();
                *size = (*size).max(log.synced_size);
            }
        }
        if let Some(from) = edit.logs_deleted_before {
            self.tracked_logs_from = self.tracked_logs_from.max(from);
            self.tracked_logs = self.tracked_logs.split_off(&from);
        }
    }

    /// Whether the edits so far make a database: some edits without which no engine opens it were there.
    pub(crate) fn check_complete(&self) -> Result<(), ManifestError> {
        let missing = match (self.log_number_seen, self.next_file_number, self.last_sequence) {
            (true, Some(_), Some(_)) => return Ok(()),
            (false, ..) => "log number",
            (_, None, _) => "next file number",
            (_, _, None) => "last sequence number",
        };
        Err(ManifestError::Corrupt(format!("no edit says the {missing}")))
    }

    /// Live column families by id.
    pub(crate) fn families(&self) -> impl Iterator<Item = (u32, &Family)> {
        self.families.iter().map(|(&id, family)| (id, family))
    }

    /// How many edits were read, whole groups or not.
    pub(crate) fn edits(&self) -> u64 {
        self.edits
    }

    /// The id that the database gave itself, if it is in the MANIFEST.
    pub(crate) fn db_id(&self) -> Option<&[u8]> {
        self.db_id.as_deref()
    }

    /// Number of live tables in all families.
    pub(crate) fn table_count(&self) -> usize {
        self.families.values().map(|family| family.tables.len()).sum()
    }

    /// Every log from this number on that exists is needed.
    pub(crate) fn needed_logs_from(&self) -> u64 {
        if self.min_log_to_keep > 0 {
            return self.min_log_to_keep;
        }
        self.families.values().map(|family| family.log_number).min().unwrap_or(0)
    }

    /// Whether a log of this number, if it exists, belongs to the state.
    pub(crate) fn needs_log(&self, number: u64) -> bool {
        number >= self.needed_logs_from()
            || (self.previous_log_number != 0 && number == self.previous_log_number)
            || self.tracked_logs.contains_key(&number)
    }

    /// Logs that must exist, with the least length in bytes that they must have.
    pub(crate) fn synced_logs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.tracked_logs.iter().filter_map(|(&number, &size)| Some((number, size?)))
    }
}

impl Family {
    fn apply(&mut self, edit: &VersionEdit) -> Result<(), ManifestError> {
        self.log_number = self.log_number.max(edit.log_number.unwrap_or(0));
        for deleted in &edit.deleted {
            let gone = self.tables.remove(&deleted.number).filter(|table| table.level == deleted.level);
            let Some(gone) = gone else {
                return Err(ManifestError::Corrupt(format!(
                    "table {} is deleted from level {}, but it is not there",
                    deleted.number, deleted.level
                )));
            };
            if let Some(blob) = gone.oldest_blob
                && let Some(linked) = self.linked.get_mut(&blob)
            {
                *linked -= 1;
                if *linked == 0 {
                    self.linked.remove(&blob);
                }
            }
        }
        for added in &edit.added {
            let table = Table {
                level: added.level,
                path_id: added.path_id,
                size: added.size,
                unique_id: added.unique_id,
                oldest_blob: added.oldest_blob,
            };
            if self.tables.insert(added.number, table).is_some() {
                return Err(ManifestError::Corrupt(format!("table {} is added twice", added.number)));
            }
            if let Some(blob) = added.oldest_blob {
                *self.linked.entry(blob).or_default() += 1;
            }
        }
        for added in &edit.blobs_added {
            let blob = Blob { count: added.count, bytes: added.bytes, garbage: 0 };
            if self.blobs.insert(added.number, blob).is_some() {
                return Err(ManifestError::Corrupt(format!("blob file {} is added twice", added.number)));
            }
        }
        for garbage in &edit.blob_garbage {
            let Some(blob) = self.blobs.get_mut(&garbage.number) else {
                return Err(ManifestError::Corrupt(format!("blob file {} is not there", garbage.number)));
            };
            blob.garbage = blob.garbage.saturating_add(garbage.count);
        }
        Ok(())
    }

    /// The name as text.
    pub(crate) fn display_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Live blob files: number and expected length in bytes. There is no record of a blob file's end; it lives while a
    /// table may refer to it (`SaveBlobFilesTo` in `db/version_builder.cc`).
    pub(crate) fn live_blobs(&self) -> impl Iterator<Item = (u64, u64)> {
        let oldest_linked = self.linked.keys().next().copied().unwrap_or(u64::MAX);
        self.blobs
            .range(oldest_linked..)
            .filter(|(number, blob)| self.linked.contains_key(number) || blob.garbage < blob.count)
            .map(|(&number, blob)| (number, blob.bytes.saturating_add(BLOB_FILE_FRAME)))
    }

    /// Blob files that live tables refer to but that no edit added: a MANIFEST whose state no engine could open.
    pub(crate) fn missing_blobs(&self) -> BTreeSet<u64> {
        self.linked.keys().filter(|number| !self.blobs.contains_key(number)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::log_format::RecordReader;
    use super::super::manifest_writer::{EditBytes, manifest};
    use super::*;

    fn edit(build: impl FnOnce(&mut EditBytes)) -> EditBytes {
        let mut bytes = EditBytes::default();
        build(&mut bytes);
        bytes
    }

    fn fold(edits: &[EditBytes]) -> Result<VersionFold, ManifestError> {
        let mut fold = VersionFold::default();
        edits.iter().try_for_each(|edit| fold.push(edit.as_bytes()))?;
        Ok(fold)
    }

    fn tables_of(fold: &VersionFold, family: u32) -> Vec<u64> {
        let family = fold.families.get(&family).unwrap();
        family.tables.keys().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn blobs_of(fold: &VersionFold) -> Vec<(u64, u64)> {
        fold.families.get(&0).unwrap().live_blobs().collect()
    }

    #[test]
    fn a_move_to_another_level_keeps_the_table_and_deletes_come_before_adds() {
        let moved = fold(&[
            edit(|e| {
                e.table_2(0, 5, 10);
            }),
            // As the engine writes it, and in the other order.
            edit(|e| {
                e.table_2(1, 5, 10).deleted(0, 5);
            }),
        ])
        .unwrap();
        assert_eq!(tables_of(&moved, 0), [5]);
        assert_eq!(moved.families[&0].tables[&5].level, 1);
    }

    #[test]
    fn edits_that_contradict_each_other_are_corrupt() {
        let cases: [&[EditBytes]; 7] = [
            &[edit(|e| {
                e.deleted(0, 5);
            })],
            &[
                edit(|e| {
                    e.table_2(0, 5, 10);
                }),
                edit(|e| {
                    e.deleted(1, 5);
                }),
            ],
            &[
                edit(|e| {
                    e.table_2(0, 5, 10);
                }),
                edit(|e| {
                    e.table_2(0, 5, 10);
                }),
            ],
            &[
                edit(|e| {
                    e.blob(400, 7, 1, 1);
                }),
                edit(|e| {
                    e.blob(400, 7, 1, 1);
                }),
            ],
            &[edit(|e| {
                e.garbage(401, 7, 1);
            })],
            &[
                edit(|e| {
                    e.number(200, 1).string_field(201, b"a");
                }),
                edit(|e| {
                    e.number(200, 1).string_field(201, b"a");
                }),
            ],
            &[edit(|e| {
                e.number(200, 1).tag(202);
            })],
        ];
        for (index, case) in cases.iter().enumerate() {
            assert!(matches!(fold(case), Err(ManifestError::Corrupt(_))), "case {index}");
        }
    }

    #[test]
    fn half_a_group_does_not_count_and_a_whole_one_counts_at_once() {
        let edits = [
            edit(|e| {
                e.number(300, 2).table_2(0, 5, 10);
            }),
            edit(|e| {
                e.number(300, 1).table_2(0, 6, 10);
            }),
            edit(|e| {
                e.number(300, 0).table_2(0, 7, 10);
            }),
        ];
        assert_eq!(fold(&edits[..2]).unwrap().table_count(), 0);
        assert_eq!(fold(&edits).unwrap().table_count(), 3);
        assert!(
            fold(&[
                edits[0].clone(),
                edit(|e| {
                    e.table_2(0, 6, 10);
                })
            ])
            .is_err(),
            "interrupted"
        );
        assert!(fold(&[edits[0].clone(), edits[2].clone()]).is_err(), "one is missing");
        assert_eq!(fold(&edits[2..]).unwrap().table_count(), 1, "a group of one");
    }

    #[test]
    fn a_dropped_family_takes_its_files_along_and_later_edits_for_it_are_read_over() {
        let fold = fold(&[
            edit(|e| {
                e.number(200, 4).string_field(201, b"pears").number(2, 9);
            }),
            edit(|e| {
                e.number(200, 4).table_2(0, 5, 10);
            }),
            edit(|e| {
                e.number(200, 4).tag(202);
            }),
            edit(|e| {
                e.number(200, 4).deleted(0, 5);
            }),
            edit(|e| {
                e.table_2(0, 6, 10);
            }),
        ])
        .unwrap();
        assert_eq!(fold.families().count(), 1);
        assert_eq!(tables_of(&fold, 0), [6]);
    }

    #[test]
    fn needed_logs_follow_the_bound_of_the_database_or_else_of_its_families() {
        let mut edits = vec![
            edit(|e| {
                e.number(2, 12).number(9, 3);
            }),
            edit(|e| {
                e.number(200, 1).string_field(201, b"a").number(2, 8);
            }),
        ];
        let families = fold(&edits).unwrap();
        assert_eq!(families.needed_logs_from(), 8);
        assert!(families.needs_log(3) && families.needs_log(8) && !families.needs_log(7));

        edits.push(edit(|e| {
            e.number(10, 11);
        }));
        edits.push(edit(|e| {
            e.table_4(0, 20, 5, &[(3, &10_u64.to_le_bytes())]);
        }));
        edits.push(edit(|e| {
            e.number(2, 5);
        }));
        let bounded = fold(&edits).unwrap();
        assert_eq!(bounded.needed_logs_from(), 11, "the largest that was ever written");
        assert!(!bounded.needs_log(10) && bounded.needs_log(11));
    }

    #[test]
    fn logs_that_the_manifest_tracks_are_known_with_their_size_until_they_are_deleted() {
        let fold = fold(&[
            edit(|e| {
                e.string_field(8199, &[10, 1]);
            }),
            edit(|e| {
                e.string_field(8199, &[10, 2, 99, 1]);
            }),
            edit(|e| {
                e.string_field(8199, &[11, 1]).string_field(8199, &[12, 2, 7, 1]);
            }),
            edit(|e| {
                e.string_field(8200, &[11]);
            }),
            edit(|e| {
                e.string_field(8199, &[10, 2, 99, 1]);
            }),
        ])
        .unwrap();
        assert_eq!(
            fold.synced_logs().collect::<Vec<_>>(),
            [(12, 7)],
            "10 is gone for good, 11 is not closed"
        );
        assert!(fold.needs_log(11));
    }

    #[test]
    fn blob_files_live_as_long_as_a_table_may_refer_to_them() {
        let link = |number, blob: u8| {
            edit(move |e| {
                e.table_4(0, number, 5, &[(4, &[blob])]);
            })
        };
        let mut edits = vec![edit(|e| {
            e.blob(400, 7, 10, 100).blob(8194, 8, 10, 200).blob(400, 9, 10, 300);
        })];
        assert_eq!(blobs_of(&fold(&edits).unwrap()), [], "no table refers to any");
        edits.push(link(20, 8));
        assert_eq!(
            blobs_of(&fold(&edits).unwrap()),
            [(8, 262), (9, 362)],
            "7 is older than any that is referred to"
        );
        edits.push(edit(|e| {
            e.garbage(401, 8, 10).garbage(8195, 9, 10);
        }));
        assert_eq!(blobs_of(&fold(&edits).unwrap()), [(8, 262)], "9 is all garbage, 8 too but referred to");
        edits.push(link(21, 9));
        edits.push(edit(|e| {
            e.deleted(0, 20);
        }));
        assert_eq!(blobs_of(&fold(&edits).unwrap()), [(9, 362)]);
        edits.push(link(22, 10));
        assert_eq!(fold(&edits).unwrap().families[&0].missing_blobs(), BTreeSet::from([10]));
    }

    #[test]
    fn a_database_needs_its_three_numbers() {
        let all = edit(|e| {
            e.number(2, 1).number(3, 2).number(4, 0);
        });
        fold(&[all]).unwrap().check_complete().unwrap();
        for missing in [2, 3, 4] {
            let some = edit(|e| {
                (2..5).filter(|&tag| tag != missing).for_each(|tag| {
                    e.number(tag, 1);
                });
            });
            assert!(fold(&[some]).unwrap().check_complete().is_err(), "{missing}");
        }
    }

    /// What a random history does, in the plainest words.
    #[derive(Debug, Clone)]
    enum Step {
        Add { family: u32, size: u64 },
        DeleteOldest { family: u32 },
        Move { family: u32 },
        Create { family: u32 },
        Drop { family: u32 },
        Flush { log: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let family = || 0_u32..4;
        prop_oneof![
            4 => (family(), 1_u64..1 << 40).prop_map(|(family, size)| Step::Add { family, size }),
            2 => family().prop_map(|family| Step::DeleteOldest { family }),
            1 => family().prop_map(|family| Step::Move { family }),
            1 => family().prop_map(|family| Step::Create { family }),
            1 => (1_u32..4).prop_map(|family| Step::Drop { family }),
            1 => (1_u64..100).prop_map(|log| Step::Flush { log }),
        ]
    }

    #[derive(Default)]
    struct Model {
        tables: BTreeMap<u32, BTreeMap<u64, (u32, u64)>>,
        next: u64,
        bound: u64,
    }

    impl Model {
        /// Does one step and writes its edit, if it does anything.
        fn run(&mut self, step: &Step) -> Option<EditBytes> {
            let mut e = EditBytes::default();
            match *step {
                Step::Add { family, size } => {
                    self.next += 1;
                    self.tables.get_mut(&family)?.insert(self.next, (0, size));
                    e.number(200, family.into()).table_4(0, self.next, size, &[]);
                }
                Step::DeleteOldest { family } => {
                    let (number, (level, _)) = self.tables.get_mut(&family)?.pop_first()?;
                    e.number(200, family.into()).deleted(level.into(), number);
                }
                Step::Move { family } => {
                    let (&number, (level, size)) = self.tables.get_mut(&family)?.iter_mut().next()?;
                    e.number(200, family.into()).deleted((*level).into(), number);
                    *level += 1;
                    e.table_2((*level).into(), number, *size);
                }
                Step::Create { family } => {
                    if self.tables.contains_key(&family) {
                        return None;
                    }
                    self.tables.insert(family, BTreeMap::new());
                    e.number(200, family.into()).string_field(201, b"some name");
                }
                Step::Drop { family } => {
                    self.tables.remove(&family)?;
                    e.number(200, family.into()).tag(202);
                }
                Step::Flush { log } => {
                    self.bound = self.bound.max(log);
                    e.number(10, log);
                }
            }
            Some(e)
        }
    }

    proptest! {
        #[test]
        fn any_history_folds_to_what_the_model_says_wherever_the_reading_pauses(
            steps in proptest::collection::vec(step(), 0..60),
            pauses in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut model = Model { tables: BTreeMap::from([(0, BTreeMap::new())]), ..Model::default() };
            let edits: Vec<EditBytes> = steps.iter().filter_map(|step| model.run(step)).collect();
            let file = manifest(&edits);

            let mut reader = RecordReader::default();
            let mut fold = VersionFold::default();
            let mut ends: Vec<usize> = pauses.iter().map(|pause| pause.index(file.len() + 1)).collect();
            ends.push(file.len());
            ends.sort_unstable();
            for end in ends {
                if let Some(bytes) = file.get(usize::try_from(reader.offset()).unwrap()..end) {
                    reader.feed(bytes, |record| fold.push(record)).unwrap();
                }
            }
            let folded: BTreeMap<u32, BTreeMap<u64, (u32, u64)>> = fold
                .families()
                .map(|(id, family)| (id, family.tables.iter().map(|(&n, t)| (n, (t.level, t.size))).collect()))
                .collect();
            prop_assert_eq!(folded, model.tables);
            prop_assert_eq!(fold.needed_logs_from(), model.bound);
            prop_assert_eq!(fold.edits(), edits.len() as u64);
        }

        #[test]
        fn arbitrary_manifests_never_panic(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..10),
            raw in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut fold = VersionFold::default();
            for record in &records {
                let _ = fold.push(record);
            }
            let _ = fold.check_complete();
            let mut reader = RecordReader::default();
            let _ = reader.feed(&raw, |record| fold.push(record));
        }
    }
}
