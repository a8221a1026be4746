//! The complete description of one backup.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillframe_storage::object_store::PutPayload;

use crate::compression::decompress_bounded;
use crate::envelope::{open_object, seal_object};
use crate::error::{Error, Result};
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::{BackupId, ContentRef, RepositoryId};

/// The version of the manifest's JSON.
pub const MANIFEST_FORMAT: u32 = 1;
const MAX_JSON_LEN: usize = 16 << 20;

/// One backup. Complete: reading it needs no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The backup.
    pub id: BackupId,
    /// The repository it was written to.
    pub repository: RepositoryId,
    /// When its writing began, which is right after the capture, by the writer's clock; after that of every backup that the writer knew.
    pub created: Timestamp,
    /// The backup whose subtrees were taken over, for people.
    #[serde(default)]
    pub base: Option<BackupId>,
    /// What the writer said of it.
    #[serde(flatten)]
    pub draft: ManifestDraft,
    /// What the writing cost.
    #[serde(default)]
    pub statistics: Statistics,
}

/// The part of a manifest that its writer fills in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ManifestDraft {
    /// A label for people; not unique.
    #[serde(default)]
    pub name: Option<String>,
    /// Labels for people.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The machine.
    #[serde(default)]
    pub host: String,
    /// The node of a deployment, where there is one.
    #[serde(default)]
    pub node: Option<String>,
    /// The shard of a deployment, where there is one.
    #[serde(default)]
    pub shard: Option<String>,
    /// Who ran it.
    #[serde(default)]
    pub user: String,
    /// Program and version.
    #[serde(default)]
    pub program: String,
    /// Which installation wrote it, opaque.
    #[serde(default)]
    pub writer: String,
    /// What is in it.
    pub sources: Vec<SourceManifest>,
    /// Files whose content was taken over from the base: the engine says that they are unchanged, so they were not read.
    #[serde(default)]
    pub files_skipped: u64,
    /// What people should know when they restore it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The damaged backup of which this is what was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired_from: Option<BackupId>,
    /// What that one lost, and so this one has not: files, and parts of lists.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_files: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a source was recorded as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceForm {
    /// A list of files.
    #[default]
    Image,
    /// Collections and rows. Read by later versions.
    Records,
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// One source of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceManifest {
    /// What it is called in this backup; unique in it.
    pub name: String,
    /// Image or records.
    #[serde(default)]
    pub form: SourceForm,
    /// The engine profile.
    pub engine: String,
    /// Where it was.
    pub url: String,
    /// The moment it shows, by the writer's clock.
    pub instant: Timestamp,
    /// How long the window was in which the moment lies, in microseconds.
    #[serde(default)]
    pub window_us: u64,
    /// Attempts it took to find it.
    #[serde(default)]
    pub attempts: u32,
    /// The image's own `snapshot.json`, byte for byte.
    pub snapshot: ContentRef,
    /// Opaque: unchanged files are looked for in a base of the same lineage only.
    #[serde(default)]
    pub lineage: Option<String>,
    /// The list of its files.
    #[serde(default = "empty_content")]
    pub files: ContentRef,
    /// Entries in that list.
    #[serde(default)]
    pub file_count: u64,
    /// Bytes of those files.
    #[serde(default)]
    pub bytes: u64,
    /// The list of its collections, of records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collections: Option<ContentRef>,
}

impl SourceManifest {
    /// An image of nothing, to be filled in.
    pub fn new(name: &str, engine: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            form: SourceForm::Image,
            engine: engine.to_owned(),
            url: url.to_owned(),
            instant: Timestamp::UNIX_EPOCH,
            window_us: 0,
            attempts: 0,
            snapshot: ContentRef::EMPTY,
            lineage: None,
            files: ContentRef::EMPTY,
            file_count: 0,
            bytes: 0,
            collections: None,
        }
    }
}

fn empty_content() -> ContentRef {
    ContentRef::EMPTY
}

/// What writing a backup cost. Bytes are before compression unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Given to the session, chunk by chunk.
    pub bytes_read: u64,
    /// Taken over from the base without reading.
    pub bytes_taken_over: u64,
    /// Chunks that the repository did not have.
    pub chunks_new: u64,
    /// Bytes of those.
    pub bytes_new: u64,
    /// Bytes of packs put, compressed and sealed.
    pub bytes_stored: u64,
    /// Chunks that were there already.
    pub chunks_known: u64,
    /// Packs put.
    pub packs: u64,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

impl Manifest {
    /// The moment that it shows: of several sources the earliest, since what was written later may not be in all of them.
    pub fn instant(&self) -> Timestamp {
        let instants = self.draft.sources.iter().map(|source| source.instant);
        instants.min().unwrap_or(self.created)
    }

    /// The sealed object, and its hash for the seal.
    pub(crate) fn encode(&self, ring: &KeyRing) -> Result<(PutPayload, blake3::Hash)> {
        let name = ObjectName::new(Kind::Manifest, self.id);
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::Invalid(format!("the manifest cannot be written as JSON: {error}")))?;
        if json.len() > MAX_JSON_LEN {
            return Err(Error::Invalid("the manifest is larger than 16 MiB".into()));
        }
        let body = zstd::bulk::compress(&json, 3)
            .map_err(|error| Error::Invalid(format!("the manifest cannot be compressed: {error}")))?;
        Ok(seal_object(ring, name, body))
    }

    pub(crate) fn decode(ring: &KeyRing, id: BackupId, bytes: &Bytes) -> Result<Self> {
        let name = ObjectName::new(Kind::Manifest, id);
        let body = open_object(ring, name, bytes)?;
        let damaged = |why: String| Error::damaged(&name, why);
        let json = decompress_bounded(&body, MAX_JSON_LEN)
            .ok_or_else(|| damaged("its body does not decompress".into()))?;
        Self::parse(name, &json)
    }

    fn parse(name: ObjectName, json: &[u8]) -> Result<Self> {
        let damaged = |why: String| Error::damaged(&name, why);
        let malformed = |error: serde_json::Error| damaged(format!("its JSON is malformed: {error}"));
        // The number first: fields that this version demands may be gone in a newer one.
        let format = serde_json::from_slice::<FormatOnly>(json).map_err(malformed)?.format;
        if format > u64::from(MANIFEST_FORMAT) {
            let supported = u64::from(MANIFEST_FORMAT);
            return Err(Error::NewerFormat { object: name.to_string(), found: format, supported });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(malformed)?;
        if manifest.id != name.id {
            return Err(damaged("it describes another backup".into()));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ObjectId;

    fn manifest(repository: RepositoryId) -> Manifest {
        Manifest {
            format: 1,
            id: ObjectId::random(),
            repository,
            created: Timestamp::UNIX_EPOCH,
            base: None,
            draft: ManifestDraft { name: Some("n".into()), ..ManifestDraft::default() },
            statistics: Statistics::default(),
        }
    }

    fn flatten(payload: &PutPayload) -> Bytes {
        payload.iter().flatten().copied().collect::<Vec<u8>>().into()
    }

    #[test]
    fn a_manifest_reads_back_and_unknown_fields_are_ignored() {
        let ring = KeyRing::generate(ObjectId::random());
        let manifest = manifest(ring.repository);
        let (payload, _) = manifest.encode(&ring).unwrap();
        assert_eq!(Manifest::decode(&ring, manifest.id, &flatten(&payload)).unwrap(), manifest);

        let mut json = serde_json::to_value(&manifest).unwrap();
        json["invented_later"] = serde_json::json!({"x": [1]});
        let name = ObjectName::new(Kind::Manifest, manifest.id);
        assert_eq!(Manifest::parse(name, json.to_string().as_bytes()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_under_the_name_of_another_backup_is_damaged() {
        let ring = KeyRing::generate(ObjectId::random());
        let manifest = manifest(ring.repository);
        let json = serde_json::to_vec(&manifest).unwrap();
        let body = zstd::bulk::compress(&json, 3).unwrap();
        let other = ObjectName::new(Kind::Manifest, ObjectId::random());
        let (payload, _) = seal_object(&ring, other, body);
        let error = Manifest::decode(&ring, other.id, &flatten(&payload)).unwrap_err();
        assert!(matches!(&error, Error::Damaged { object, .. } if *object == other.to_string()), "{error}");
    }

    #[test]
    fn a_newer_format_is_named_even_when_nothing_else_is_understood() {
        let name = ObjectName::new(Kind::Manifest, ObjectId::random());
        let error = Manifest::parse(name, br#"{"format": 2, "all": "else"}"#).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 2, .. }), "{error}");
        assert!(matches!(Manifest::parse(name, b"{}").unwrap_err(), Error::Damaged { .. }));
    }

    proptest! {
        #[test]
        fn hostile_json_never_panics(text in ".{0,200}") {
            let name = ObjectName::new(Kind::Manifest, ObjectId([0; 16]));
            let _ = Manifest::parse(name, text.as_bytes());
            let nested = format!("{{\"format\": 1, \"sources\": {}", "[".repeat(100_000));
            prop_assert!(Manifest::parse(name, nested.as_bytes()).is_err());
        }
    }
}
