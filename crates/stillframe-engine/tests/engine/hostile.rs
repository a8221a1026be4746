//! Backups that somebody else wrote: whoever has the passphrase can write any manifest, and a restore must stay in its directory.

use std::path::Path;

use crate::house::House;
use stillframe_repo::{
    Error, FileEntry, FileKind, FileListWriter, ManifestDraft, SourceForm, SourceManifest, WriteOptions,
};
use stillframe_storage::RelativePath;
use stillframe_testkit::ManualClock;

/// Writes a backup whose file list holds these entries: path and, for links, a target.
async fn write_backup(
    house: &House,
    entries: &[(&str, Option<&Path>)],
    directories: &str,
) -> stillframe_repo::BackupId {
    write_backup_with(house, entries, directories, |_| ()).await
}

/// Writes a backup of one small file that announces so many bytes.
pub async fn write_backup_announcing(house: &House, bytes: u64) -> stillframe_repo::BackupId {
    write_backup_with(house, &[("f", None)], "[]", |source| source.bytes = bytes).await
}

/// Writes a backup of one small file whose list is none.
pub async fn write_backup_without_list(house: &House) -> stillframe_repo::BackupId {
    write_backup_with(house, &[("f", None)], "[]", |source| source.files = source.snapshot).await
}

/// Writes a backup of one small file by an engine that this version does not know.
pub async fn write_backup_of_an_unknown_engine(house: &House) -> stillframe_repo::BackupId {
    write_backup_with(house, &[("f", None)], "[]", |source| "sled".clone_into(&mut source.engine)).await
}

async fn write_backup_with(
    house: &House,
    entries: &[(&str, Option<&Path>)],
    directories: &str,
    alter: impl Fn(&mut SourceManifest) + Copy + Send,
) -> stillframe_repo::BackupId {
    let clock = std::sync::Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    let snapshot = format!(
        r#"{{"version":1,"engine":"files","profile":1,"source":"/x","instant":"2025-01-01T00:00:00Z","window_us":0,
            "attempts":1,"pointers":[],"directories":{directories},"files":[]}}"#
    );
    let written = house
        .repo
        .write(&WriteOptions::new(clock), |session| {
            let snapshot = &snapshot;
            async move {
                tokio::task::block_in_place(|| {
                    let mut list = FileListWriter::new(&session);
                    for (path, target) in entries {
                        let (directory, path) = path.split_once(':').unwrap_or(("", path));
                        let kind = match target {
                            Some(target) => {
                                FileKind::Symlink { target: target.as_os_str().as_encoded_bytes().to_vec() }
                            }
                            None => FileKind::File { content: session.put_content(b"payload")? },
                        };
                        list.push(&FileEntry {
                            directory: directory.to_owned(),
                            path: RelativePath::from_bytes(path.as_bytes())
                                .expect("a path that a list accepts"),
                            kind,
                            role: "other".to_owned(),
                            mode: 0o644,
                            uid: 0,
                            gid: 0,
                            mtime: 0,
                            mtime_nanos: 0,
                            identity: None,
                        })?;
                    }
                    let list = list.finish()?;
                    let mut source = SourceManifest {
                        name: "s".to_owned(),
                        form: SourceForm::Image,
                        engine: "files".to_owned(),
                        url: "files:/x".to_owned(),
                        instant: jiff::Timestamp::UNIX_EPOCH,
                        window_us: 0,
                        attempts: 1,
                        snapshot: session.put_content(snapshot.as_bytes())?,
                        lineage: None,
                        files: list.content,
                        file_count: list.file_count,
                        bytes: list.bytes,
                        collections: None,
                    };
                    alter(&mut source);
                    Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
                })
            }
        })
        .await
        .unwrap();
    written.manifest.id
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_through_a_link_of_the_backup() {
    let house = House::new().await;
    let outside = house.out("outside");
    std::fs::create_dir(&outside).unwrap();
    let id = write_backup(&house, &[("a", Some(&outside)), ("a/evil", None)], "[]").await;
    let result = house.restore(id, &house.out("target")).await;
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was written outside");
    assert!(result.is_err(), "a path that is both a link and a directory is no tree");
    assert!(!house.out("target").exists());
    assert!(house.left_behind().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_directory_cannot_leave_the_target() {
    let house = House::new().await;
    for name in ["../outside", "/tmp/outside", ".."] {
        let directories = format!(r#"[{{"name":"{name}","original":"/y","option":"o"}}]"#);
        let id = write_backup(&house, &[("f", None)], &directories).await;
        let error = house.restore(id, &house.out("target")).await.unwrap_err();
        assert!(error.to_string().contains("unsafe path"), "{error}");
        assert!(!house.out("target").exists() && !house.out("outside").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_at_one_place_are_refused() {
    let house = House::new().await;
    let directories = r#"[{"name":"w","original":"/y","option":"o"}]"#;
    let id = write_backup(&house, &[("w/f", None), ("w:f", None)], directories).await;
    assert!(house.restore(id, &house.out("target")).await.is_err());
    assert!(!house.out("target").exists());
}
