//! Objects that decrypt, since they were sealed with the repository's own keys, and are wrong all the same: a writer with a mistake made
//! them, or somebody who has the passphrase.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::sync::Arc;

use stillframe_storage::object_store::memory::InMemory;
use tokio_util::sync::CancellationToken;

use crate::compression::Compression;
use crate::envelope::{HASH_LEN, Header, ObjectKey, TAG_LEN, frame, seal_object};
use crate::index_cache::Location;
use crate::key_object::{KeyDescription, KeyObject};
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::pack_table::{PackEntry, PackTable};
use crate::test_support::{Files, PACK_SIZE, clock, describe, entry, files, init, noise, open, read, write};
use crate::{
    BackupId, CheckOptions, CheckReport, ChunkRef, ContentRef, ContentWriter, Encryption, Error, FileEntry,
    FileKind, InitOptions, Manifest, ManifestDraft, ObjectId, Passphrase, PassphraseCost, ReadData,
    Repository, SourceManifest, Unlock, VerifyLevel, VerifyOptions, VerifyReport, WriteOptions, WriteSession,
    index_segment,
};

struct Scene {
    store: Arc<InMemory>,
    repository: Repository,
    content: Files,
    id: BackupId,
    _cache: tempfile::TempDir,
}

async fn scene() -> Scene {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 4, 3000);
    let id = write(&repository, "a", &content).await.unwrap().manifest.id;
    Scene { store, repository, content, id, _cache: cache }
}

/// Writes a backup of one source, which `make` describes.
async fn write_source(
    repository: &Repository,
    make: impl FnOnce(&WriteSession) -> Result<SourceManifest, Error> + Send + Clone + 'static,
) -> Manifest {
    let options = WriteOptions::new(clock());
    let write = repository.write(&options, async |session: Arc<WriteSession>| {
        let make = make.clone();
        let source = tokio::task::spawn_blocking(move || make(&session)).await.unwrap()?;
        Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
    });
    write.await.unwrap().manifest
}

fn source() -> SourceManifest {
    SourceManifest::new("db", "files", "files:/db")
}

async fn verify(repository: &Repository, id: BackupId, level: VerifyLevel) -> VerifyReport {
    repository.verify(id, &VerifyOptions::new(level)).await.unwrap()
}

async fn first_file(repository: &Repository, id: BackupId) -> FileEntry {
    let manifest = repository.manifest(id).await.unwrap();
    repository.files(manifest.draft.sources[0].files).next().await.unwrap().unwrap()
}

/// Seals other bytes where the pack has a chunk, and gives the pack the hash that belongs to them.
async fn seal_other_bytes(repository: &Repository, place: &Location) {
    let name = ObjectName::new(Kind::Pack, place.pack);
    let header = Header { name, repository: repository.id(), epoch: place.epoch, salt: place.salt };
    let mut chunk = noise(77, usize::try_from(place.entry.stored_len).unwrap() - TAG_LEN);
    ObjectKey::derive(repository.ring(), &header).unwrap().seal(place.position.into(), &mut chunk);
    let mut bytes = repository.io().get(name).await.unwrap().to_vec();
    let at = usize::try_from(place.offset).unwrap();
    bytes[at..at + chunk.len()].copy_from_slice(&chunk);
    let end = bytes.len() - HASH_LEN;
    let hash = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(hash.as_bytes());
    repository.io().put(name, bytes.into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_bytes_are_not_those_of_its_name_is_never_given_out() {
    let scene = scene().await;
    let file = first_file(&scene.repository, scene.id).await;
    let FileKind::File { content } = file.kind else { panic!("only files were written") };
    let chunk = scene.repository.leaves(content).next().await.unwrap().unwrap();
    let place = scene.repository.index().locate(&chunk.id).unwrap().remove(0);
    assert_eq!(place.entry.compression, Compression::Raw);
    seal_other_bytes(&scene.repository, &place).await;

    let elsewhere = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), elsewhere.path()).await;
    for level in [VerifyLevel::Exists, VerifyLevel::Hash] {
        assert!(verify(&repository, scene.id, level).await.is_sound(), "{level:?} promises less");
    }
    let report = verify(&repository, scene.id, VerifyLevel::Decrypt).await;
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    assert_eq!(finding.object, ObjectName::new(Kind::Pack, place.pack).to_string());
    assert_eq!((&finding.file, finding.chunk), (&Some(file.path.to_string()), Some(chunk.id)));

    let checked = check(&repository, ReadData::All).await;
    let of_backup: Vec<_> = checked.findings.iter().filter(|found| found.backup == Some(scene.id)).collect();
    let [named] = of_backup.as_slice() else { panic!("{checked:?}") };
    assert_eq!((&named.finding.file, named.finding.chunk), (&Some(file.path.to_string()), Some(chunk.id)));
    assert_eq!(checked.findings[0].finding.object, ObjectName::new(Kind::Pack, place.pack).to_string());

    let elsewhere = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), elsewhere.path()).await;
    let error = repository.read_chunk(&chunk.id).await.unwrap_err();
    assert!(matches!(&error, Error::ChunkLost { chunk: lost, .. } if *lost == chunk.id), "{error}");
    let error = repository.chunk_reader().read_group(&[chunk]).await.unwrap_err();
    assert!(matches!(&error, Error::ChunkLost { chunk: lost, .. } if *lost == chunk.id), "{error}");
}

async fn check(repository: &Repository, read: ReadData) -> CheckReport {
    repository.check(&CheckOptions::new(read)).await.unwrap()
}

/// An index that says of a pack what is not in it: believed by nobody who checks, and gone when it is written anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_named_with_the_pack_and_repaired() {
    let scene = scene().await;
    let (io, ring) = (scene.repository.io(), scene.repository.ring());
    let segment = ObjectName::new(Kind::Index, io.list(Kind::Index).await.unwrap()[0].id);
    let mut tables = index_segment::decode(ring, segment, &io.get(segment).await.unwrap()).unwrap();
    let table = tables.last_mut().unwrap();
    let pack = ObjectName::new(Kind::Pack, table.pack);
    // Two chunks change their places; the lengths that tell where others are stay.
    let [.., one, two] = table.entries.as_mut_slice() else { panic!() };
    std::mem::swap(&mut one.id, &mut two.id);
    io.put(segment, index_segment::encode(ring, segment, &tables)).await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), elsewhere.path()).await;
    read(&repository, scene.id).await.unwrap_err();
    for data in [ReadData::Nothing, ReadData::All] {
        let report = check(&repository, data).await;
        let [found] = report.findings.as_slice() else { panic!("{report:?}") };
        assert_eq!(found.finding.object, segment.to_string());
        assert!(found.finding.why.contains(&pack.to_string()), "{report:?}");
    }
    repository.repair_index(&CancellationToken::new()).await.unwrap();
    assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    assert!(check(&repository, ReadData::All).await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_says_another_length_of_a_chunk_is_not_given_out() {
    let scene = scene().await;
    let wrong = |session: &WriteSession, lengths: [u64; 2]| -> Result<ContentRef, Error> {
        let mut writer = ContentWriter::new(session);
        for (seed, length) in (0..).zip(lengths) {
            if length > 0 {
                writer.push(ChunkRef { length, ..session.put(&noise(100 + seed, 1000))? })?;
            }
        }
        writer.finish()
    };
    for lengths in [[999, 0], [1001, 0], [999, 1001]] {
        let make = move |session: &WriteSession| {
            Ok(SourceManifest { snapshot: wrong(session, lengths)?, ..source() })
        };
        let manifest = write_source(&scene.repository, make).await;
        let content = manifest.draft.sources[0].snapshot;
        let error = scene.repository.read_content(content, u64::MAX).await.unwrap_err();
        assert!(matches!(error, Error::Inconsistent { .. }), "{lengths:?}: {error}");
        assert!(!verify(&scene.repository, manifest.id, VerifyLevel::Exists).await.is_sound(), "{lengths:?}");
        let checked = check(&scene.repository, ReadData::Nothing).await;
        assert!(checked.findings.iter().any(|found| found.backup == Some(manifest.id)), "{checked:?}");
        let present = scene.repository.check_presence([content], &CancellationToken::new()).await;
        let error = present.unwrap_err();
        assert!(error.is_damage(), "nobody can read it, so no backup may take it over: {lengths:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_says_another_length_of_a_known_chunk_is_not_relied_on() {
    let scene = scene().await;
    let (repository, bytes) = (&scene.repository, noise(5, 1000));
    // A pack that holds half of it under the name of the whole.
    let name = ObjectName::new(Kind::Pack, ObjectId::random());
    let header = Header::new(repository.ring(), name);
    let key = ObjectKey::derive(repository.ring(), &header).unwrap();
    let mut chunk = bytes[..500].to_vec();
    key.seal(0, &mut chunk);
    let entries = [PackEntry {
        id: repository.ring().chunk_id(&bytes),
        stored_len: 500 + u32::try_from(TAG_LEN).unwrap(),
        plain_len: 500,
        compression: Compression::Raw,
    }];
    let (pack, _) = frame(&header, vec![chunk.into(), PackTable::encode_footer(&key, &entries)]);
    repository.io().put(name, pack).await.unwrap();

    repository.index().refresh().await.unwrap();
    assert_eq!(repository.index().locate(&entries[0].id).unwrap()[0].entry, entries[0], "it is known");

    let content = Files::from([("file".to_owned(), bytes)]);
    let written = write(repository, "b", &content).await.unwrap().manifest;
    assert_eq!(read(repository, written.id).await.unwrap(), content);
    let report = verify(repository, written.id, VerifyLevel::Decrypt).await;
    assert!(report.is_sound(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_is_good_for_the_manifest_that_it_was_made_for_and_for_no_other() {
    let scene = scene().await;
    let repository = &scene.repository;
    let manifest = repository.manifest(scene.id).await.unwrap();
    let other = write(repository, "b", &files(2, 1, 1000)).await.unwrap().manifest;
    let hash_of = async |id| {
        let bytes = repository.io().get(ObjectName::new(Kind::Manifest, id)).await.unwrap();
        bytes[bytes.len() - HASH_LEN..].to_vec()
    };
    let name = ObjectName::new(Kind::Sealed, scene.id);
    let (own, others) = (hash_of(scene.id).await, hash_of(other.id).await);
    let seal = async |hash: &[u8]| {
        let (payload, _) = seal_object(repository.ring(), name, hash.to_vec());
        repository.io().put(name, payload).await.unwrap();
    };
    let is_refused = async || {
        let error = repository.manifest(scene.id).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { object, .. } if *object == name.to_string()), "{error}");
        let backups = repository.backups().await.unwrap();
        assert_eq!(backups.readable.iter().map(|manifest| manifest.id).collect::<Vec<_>>(), [other.id]);
        assert_eq!(backups.unreadable.len(), 1);
    };
    seal(&others).await;
    is_refused().await;
    // No hash at all is none of the manifest's.
    seal(b"").await;
    is_refused().await;
    seal(&own).await;
    assert_eq!(repository.manifest(scene.id).await.unwrap(), manifest);
    // Another manifest under the name of the one that was sealed.
    let changed = Manifest { draft: ManifestDraft { sources: Vec::new(), ..manifest.draft }, ..manifest };
    let (payload, _) = changed.encode(repository.ring()).unwrap();
    repository.io().put(ObjectName::new(Kind::Manifest, scene.id), payload).await.unwrap();
    is_refused().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_another_repository_is_not_taken_though_the_same_passphrase_opens_it() {
    let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
    let passphrase = Passphrase::from("one");
    let protections = [
        (Encryption::None, Unlock::None, None),
        (
            Encryption::Passphrase(passphrase.clone()),
            Unlock::Passphrase(passphrase.clone()),
            Some((&passphrase, cost)),
        ),
    ];
    for (encryption, unlock, wrapping) in protections {
        let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
        let options = InitOptions { cost, pack_size: PACK_SIZE, ..InitOptions::new(encryption, clock()) };
        let repository = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
        let content = files(1, 2, 2000);
        let id = write(&repository, "a", &content).await.unwrap().manifest.id;
        let own = repository.keys().await.unwrap().remove(0).unwrap().id;
        // What is left of a making that was cut short. It comes before all others.
        let description = KeyDescription { label: "other".into(), created: jiff::Timestamp::UNIX_EPOCH };
        let ring = KeyRing::generate(ObjectId::random());
        let name = ObjectName::new(Kind::Keys, ObjectId([0; 16]));
        let key = KeyObject::encode(&ring, name, wrapping, &description).unwrap();
        repository.io().put(name, key).await.unwrap();

        let opened = Repository::open(store.clone(), &unlock, cache.path()).await.unwrap();
        assert_eq!(read(&opened, id).await.unwrap(), content, "{unlock:?}");
        assert_eq!(opened.keys().await.unwrap().len(), 1, "{unlock:?}");
        repository.io().delete(ObjectName::new(Kind::Keys, own)).await.unwrap();
        let error = Repository::open(store, &unlock, cache.path()).await.unwrap_err();
        assert!(error.to_string().starts_with("stillframe.json"), "{unlock:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_list_that_is_out_of_order_or_repeats_a_path_is_refused() {
    let scene = scene().await;
    // Each inner list is a chunk: the order goes on from one to the next.
    let lists: [&[&[&str]]; 5] = [
        &[&["b", "a"]],
        &[&["a", "a"]],
        &[&["a", "b"], &["b", "c"]],
        &[&["b", "c"], &["a", "d"]],
        &[&["w:a", ":b"]],
    ];
    for list in lists {
        let make = move |session: &WriteSession| {
            let mut writer = ContentWriter::new(session);
            for part in list {
                let mut chunk = Vec::new();
                for path in *part {
                    let (directory, path) = path.split_once(':').unwrap_or(("", path));
                    let directory = directory.to_owned();
                    FileEntry { directory, ..entry(path, ContentRef::EMPTY) }.encode(&mut chunk)?;
                }
                writer.push(session.put(&chunk)?)?;
            }
            let file_count = list.iter().map(|part| part.len() as u64).sum();
            Ok(SourceManifest { files: writer.finish()?, file_count, ..source() })
        };
        let manifest = write_source(&scene.repository, make).await;
        let mut entries = scene.repository.files(manifest.draft.sources[0].files);
        let error = loop {
            match entries.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{list:?} was read to its end"),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, Error::Inconsistent { what: "file list", .. }), "{list:?}: {error}");
        assert!(error.to_string().contains("out of order"), "{list:?}: {error}");
        assert!(!verify(&scene.repository, manifest.id, VerifyLevel::Exists).await.is_sound(), "{list:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_announces_other_files_than_its_list_holds_is_not_sound() {
    let scene = scene().await;
    for (more_files, more_bytes) in [(0, 0), (1, 0), (0, 1)] {
        let content = scene.content.clone();
        let make = move |session: &WriteSession| {
            let source = describe(session, "b", &content)?.sources.remove(0);
            let (file_count, bytes) = (source.file_count + more_files, source.bytes + more_bytes);
            Ok(SourceManifest { file_count, bytes, ..source })
        };
        let id = write_source(&scene.repository, make).await.id;
        let report = verify(&scene.repository, id, VerifyLevel::Exists).await;
        assert_eq!(report.is_sound(), (more_files, more_bytes) == (0, 0), "{report:?}");
        let names_it = |finding: &crate::Finding| {
            finding.object == ObjectName::new(Kind::Manifest, id).to_string()
                && finding.why.contains("announces")
        };
        assert!(report.findings.iter().all(names_it), "{report:?}");
    }
}
