//! Which files of an image need not be read, because an earlier backup provably holds them.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;

use stillframe_capture::{Image, SnapshotFile};
use stillframe_repo::{
    BackupId, ContentRef, Error as RepoError, FileEntry, FileKind, Manifest, Repository, SourceManifest,
};
use stillframe_storage::since_1970;
use tokio_util::sync::CancellationToken;

use crate::base_hint::BaseHints;
use crate::list_order::{list_key, list_order};
use crate::{EngineError, NamedSource};

/// By file of the image's snapshot, in its order: the content that an earlier backup has of it.
#[derive(Debug, Default)]
pub(crate) struct Unchanged {
    contents: Vec<Option<ContentRef>>,
}

impl Unchanged {
    pub(crate) fn content(&self, index: usize) -> Option<&ContentRef> {
        self.contents.get(index)?.as_ref()
    }

    pub(crate) fn count(&self) -> u64 {
        u64::try_from(self.contents.iter().flatten().count()).expect("a usize fits a u64")
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.contents.iter().flatten().map(|content| content.length).sum()
    }
}

/// The backup that has most of these sources in the same lineages, of equals the newest: of those that are remembered, or, where none of
/// them has all, of all.
pub(crate) async fn find_base(
    repo: &Repository,
    hints: &BaseHints,
    sources: &[NamedSource],
    images: &[std::sync::Arc<Image>],
) -> Result<Option<(BackupId, Manifest)>, EngineError> {
    let lineages: Vec<&String> =
        images.iter().filter_map(|image| image.snapshot().lineage.as_ref()).collect();
    if lineages.is_empty() || sources.is_empty() {
        return Ok(None);
    }
    let has = |backup: &Manifest, lineage: &String| {
        backup.draft.sources.iter().any(|source| source.lineage.as_ref() == Some(lineage))
    };
    let rank =
        |backup: &Manifest| (lineages.iter().filter(|lineage| has(backup, lineage)).count(), backup.created);
    let mut known = Vec::new();
    for remembered in lineages.iter().filter_map(|lineage| hints.read(lineage)).collect::<BTreeSet<_>>() {
        // One that is gone or damaged is as good as none.
        known.extend(repo.manifest(remembered).await.ok().filter(|backup| rank(backup).0 > 0));
    }
    if known.iter().all(|backup| rank(backup).0 < lineages.len()) {
        known = repo.backups().await?.readable;
    }
    let best = known.into_iter().max_by_key(rank).filter(|backup| rank(backup).0 > 0);
    tracing::debug!(base = ?best.as_ref().map(|backup| backup.id), "chose the earlier backup to compare with");
    Ok(best.map(|backup| (backup.id, backup)))
}

/// Why an earlier backup is not relied on.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) why: String,
    /// The repository does not have what it should have.
    pub(crate) damage: bool,
}

/// The files of the image that the earlier backup has, with a sample of them read and compared.
pub(crate) async fn find_unchanged(
    repo: &Repository,
    image: &Image,
    base: Option<&Manifest>,
    seed: &str,
    cancel: &CancellationToken,
) -> Result<Result<Unchanged, Doubt>, EngineError> {
    let found = async {
        let found = compare_lists(repo, image, base).await?;
        repo.check_presence(found.contents.iter().flatten().copied(), cancel).await?;
        Ok(check_sample(repo, image, &found, seed, cancel).await?.map(|()| found))
    };
    match found.await {
        Ok(Ok(found)) => Ok(Ok(found)),
        Ok(Err(path)) => {
            Ok(Err(Doubt { why: format!("{path} claims to be unchanged and is not"), damage: false }))
        }
        // Damage in the repository must not be handed on from backup to backup, nor keep new ones from being made.
        Err(EngineError::Repo(error)) => {
            let damage = RepoError::is_damage(&error);
            let why = format!("an earlier backup is damaged ({error}; run verify)");
            if damage { Ok(Err(Doubt { why, damage })) } else { Err(error.into()) }
        }
        Err(error) => Err(error),
    }
}

/// Walks the image and the earlier backup's list of the same source side by side.
async fn compare_lists(
    repo: &Repository,
    image: &Image,
    base: Option<&Manifest>,
) -> Result<Unchanged, EngineError> {
    let snapshot = image.snapshot();
    let same = |source: &&SourceManifest| snapshot.lineage.is_some() && source.lineage == snapshot.lineage;
    let Some(base) = base.and_then(|base| base.draft.sources.iter().find(same)) else {
        return Ok(Unchanged::default());
    };
    let mut contents = vec![None; snapshot.files.len()];
    let mut list = repo.files(base.files);
    let mut theirs: Option<FileEntry> = list.next().await?;
    for index in list_order(&snapshot.files) {
        let Some(ours) = snapshot.files.get(index) else { continue };
        let key = list_key(ours);
        while theirs.as_ref().is_some_and(|theirs| theirs.key() < key) {
            theirs = list.next().await?;
        }
        let Some(entry) = theirs.as_ref() else { break };
        if entry.key() == key && is_same(ours, entry) {
            *contents.get_mut(index).expect("one place for each file") = content_of(entry).copied();
        }
    }
    Ok(Unchanged { contents })
}

fn content_of(entry: &FileEntry) -> Option<&ContentRef> {
    match &entry.kind {
        FileKind::File { content } => Some(content),
        FileKind::Directory | FileKind::Symlink { .. } => None,
    }
}

/// The engine's own proof says which table it is, and not that nobody wrote into it: an ingestion puts a sequence number into the file, and an
/// operator puts a whole copy in the place of a damaged one. Either gives it another time.
fn is_same(ours: &SnapshotFile, theirs: &FileEntry) -> bool {
    let Some(identity) = &ours.identity else { return false };
    since_1970(ours.modified) == (theirs.mtime, theirs.mtime_nanos)
        && theirs.identity.as_deref() == Some(identity.as_bytes())
        && content_of(theirs).is_some_and(|content| content.length == ours.size)
}

/// Reads one chunk in a thousand unchanged files, at least one, and compares it with what the earlier backup has. `Err` names
/// the file where they differ: then nothing of that lineage is to be trusted.
async fn check_sample(
    repo: &Repository,
    image: &Image,
    unchanged: &Unchanged,
    seed: &str,
    cancel: &CancellationToken,
) -> Result<Result<(), String>, EngineError> {
    let files = 0..unchanged.contents.len();
    let files = files.filter(|&index| unchanged.content(index).is_some_and(|content| content.length > 0));
    for index in sample_of(seed, files) {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let (Some(file), Some(content)) = (image.snapshot().files.get(index), unchanged.content(index))
        else {
            continue;
        };
        let mut chunks = repo.leaves(*content);
        let mut offset = 0;
        // Any chunk will do; the last that is reached within the first few keeps the walk short for huge files.
        let stop = draw(seed, index) / 1000 % 8;
        let mut chosen = None;
        for _ in 0..=stop {
            let Some(chunk) = chunks.next().await? else { break };
            chosen = Some((offset, chunk));
            offset += chunk.length;
        }
        let Some((offset, chunk)) = chosen else { continue };
        let length = usize::try_from(chunk.length)
            .map_err(|_| EngineError::Bug("a chunk of more than a usize".into()))?;
        let mut bytes = vec![0; length];
        let here = image.open(&file.path)?;
        here.read_exact_at(&mut bytes, offset).map_err(EngineError::io("read", file.path.as_path()))?;
        if *repo.read_chunk(&chunk.id).await? != *bytes {
            return Ok(Err(file.path.to_string()));
        }
    }
    Ok(Ok(()))
}

/// One in a thousand of these files, as the lot falls, and at least one.
fn sample_of(seed: &str, files: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut sample: Vec<usize> = Vec::new();
    let mut least: Option<(u64, usize)> = None;
    for index in files {
        let draw = draw(seed, index);
        if draw.is_multiple_of(1000) {
            sample.push(index);
        }
        if least.is_none_or(|(lowest, _)| draw < lowest) {
            least = Some((draw, index));
        }
    }
    if sample.is_empty() {
        sample.extend(least.map(|(_, index)| index));
    }
    sample
}

fn draw(seed: &str, index: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, index).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_files_one_in_a_thousand_is_looked_at_and_of_few_at_least_one() {
        let samples: Vec<Vec<usize>> = (0..20).map(|n| sample_of(&format!("{n:016x}"), 0..20_000)).collect();
        for sample in &samples {
            assert!((2..60).contains(&sample.len()), "{} of 20 000", sample.len());
        }
        let all: BTreeSet<usize> = samples.iter().flatten().copied().collect();
        assert!((300..500).contains(&all.len()), "each time others: {}", all.len());
        for n in 0..20 {
            let seed = format!("{n:016x}");
            assert_eq!(sample_of(&seed, 7..8), [7]);
            assert!(!sample_of(&seed, 0..5).is_empty());
            assert_eq!(sample_of(&seed, 0..0), [0; 0]);
        }
    }
}
