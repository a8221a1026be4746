//! Makes the repositories in `tests/golden/`, which every later version must still read: `golden DIR`. Run once per version of
//! the format, never again: what it makes is committed. A place that is there already is left as it is.

use std::path::Path;
use std::sync::Arc;

use stillframe_repo::{
    ContentRef, ContentWriter, Encryption, Error, FileEntry, FileKind, FileListWriter, InitOptions,
    ManifestDraft, PassphraseCost, Pin, Repository, RotateOptions, SourceManifest, Unlock, Verification,
    WriteOptions, WriteSession,
};
use stillframe_storage::{Clock, Location, SystemClock};

fn describe(session: &WriteSession) -> Result<ManifestDraft, Error> {
    let content = |bytes: &[u8]| {
        let mut writer = ContentWriter::new(session);
        for chunk in bytes.chunks(1000) {
            writer.push(session.put(chunk)?)?;
        }
        writer.finish()
    };
    let entry = |directory: &str, path: &str, kind| FileEntry {
        directory: directory.to_owned(),
        path: path.parse().expect("a good path"),
        kind,
        role: "table".into(),
        mode: 0o640,
        uid: 1,
        gid: 2,
        mtime: -7,
        mtime_nanos: 9,
        identity: Some(b"proof".to_vec()),
    };
    let numbers: Vec<u8> = (0..2500_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut list = FileListWriter::new(session);
    list.push(&entry("", "CURRENT", FileKind::File { content: content(b"MANIFEST-000001\n")? }))?;
    list.push(&entry("", "empty", FileKind::File { content: ContentRef::EMPTY }))?;
    list.push(&entry("", "link", FileKind::Symlink { target: b"../elsewhere".to_vec() }))?;
    list.push(&entry("", "numbers", FileKind::File { content: content(&numbers)? }))?;
    list.push(&entry("", "sub", FileKind::Directory))?;
    list.push(&entry("wal_dir", "000003.log", FileKind::File { content: content(&b"log ".repeat(3000))? }))?;
    let list = list.finish()?;
    let source = SourceManifest {
        snapshot: session.put_content(b"{}")?,
        files: list.content,
        file_count: list.file_count,
        bytes: list.bytes,
        ..SourceManifest::new("db", "rocksdb", "rocksdb:/db")
    };
    Ok(ManifestDraft { name: Some("golden".into()), sources: vec![source], ..ManifestDraft::default() })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: golden DIR")?;
    let clock = Arc::new(SystemClock::new());
    let passphrase = || Encryption::Passphrase("golden".into());
    for (name, encryption) in
        [("plain", Encryption::None), ("encrypted", passphrase()), ("lived", passphrase())]
    {
        let place = Path::new(&dir).join(name);
        if place.exists() {
            continue;
        }
        std::fs::create_dir_all(&place)?;
        let options = InitOptions {
            cost: PassphraseCost { memory_kib: 1024, passes: 2, lanes: 2 },
            pack_size: 8192,
            label: "first".into(),
            ..InitOptions::new(encryption, clock.clone())
        };
        let store = stillframe_storage::open(&Location::Directory(place))?;
        let cache = std::env::temp_dir().join(format!("stillframe-golden-{}", std::process::id()));
        let mut repository = Repository::init(store.clone(), &options, &cache).await?;
        let write = async |session: Arc<WriteSession>| {
            tokio::task::spawn_blocking(move || describe(&session)).await.expect("it does not panic")
        };
        if name == "lived" {
            // A second epoch: the backup is of that, and a key of the first one is gone.
            let cost = options.cost;
            repository.add_key("another".into(), cost, "second", &*clock).await?;
            let rotation = RotateOptions { cost, label: None, remove_others: true, clock: &*clock };
            repository.rotate_key("golden".into(), &rotation).await?;
            repository = Repository::open(store, &Unlock::Passphrase("golden".into()), &cache).await?;
        }
        let id = repository.write(&WriteOptions::new(clock.clone()), write).await?.manifest.id;
        if name == "lived" {
            let pin = Pin { why: "audit".into(), since: clock.now(), host: "here".into() };
            repository.pin(id, &pin).await?;
            let seen = Verification { at: clock.now(), host: "here".into(), sound: true, whole: true };
            repository.record_verification(id, "decrypt", seen).await?;
        }
        println!("{id}");
        std::fs::remove_dir_all(cache)?;
    }
    Ok(())
}
