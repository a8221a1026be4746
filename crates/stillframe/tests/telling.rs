//! What a command says of its result beside the numbers: what the user must know to use it.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../../stillframe-engine/tests/engine/made_rocksdb.rs"]
mod made_rocksdb;
mod scene;

use std::os::unix::fs::MetadataExt;

use crate::made_rocksdb::make_rocksdb;
use crate::scene::Scene;

/// A database that is opened without its log would miss what it wrote last.
#[test]
fn a_restore_says_which_options_a_database_in_several_directories_must_be_opened_with() {
    let scene = Scene::new();
    make_rocksdb(&scene.path("kv"), &scene.path("logs"), &[(11, b"table")]);
    scene.back_up(&["rocksdb:kv"]);
    let back = scene.path("back").join("wal_dir");
    let said = format!("are in {}: open the database with wal_dir set to it", back.display());
    let out = scene.good(&["restore", "latest", "--to", "back"]);
    assert!(out.contains(&said), "{out}");
    let restored = scene.objects(&["restore", "latest", "--to", "again"]).pop().unwrap();
    assert!(restored["remarks"][0].as_str().unwrap().contains("wal_dir"), "{restored}");
}

#[test]
fn an_image_says_whether_its_tables_are_the_live_ones() {
    let scene = Scene::new();
    make_rocksdb(&scene.path("kv"), &scene.path("kv"), &[(11, b"table")]);
    let create = ["image", "create", "rocksdb:kv", "--reserve", "0"];
    for (to, copy, linked) in [("linked", &[][..], true), ("copied", &["--copy"], false)] {
        let out = scene.good(&[&create[..], &["--to", to], copy].concat());
        assert_eq!(out.contains("hard links to the live ones"), linked, "{out}");
        let table = scene.path(to).join("000011.sst");
        assert_eq!(std::fs::metadata(&table).unwrap().nlink() > 1, linked);
        // A copy of a table that has several names for now is none of them.
        std::fs::remove_dir_all(scene.path(to)).unwrap();
        let image = scene.objects(&[&create[..], &["--to", to], copy].concat()).pop().unwrap();
        assert_eq!((&image["type"], &image["linked"]), (&"image".into(), &linked.into()));
    }
}

#[test]
fn a_backup_tells_how_many_files_it_took_over_unread() {
    let scene = Scene::new();
    make_rocksdb(&scene.path("kv"), &scene.path("kv"), &[(11, &[7; 5000]), (12, &[8; 6000])]);
    for (name, files) in [("first", 0), ("second", 2)] {
        scene.back_up(&["rocksdb:kv", "--name", name]);
        let shown = scene.objects(&["show", name]).pop().unwrap();
        assert_eq!(shown["files_taken_over"], files);
        let plural = format!("taken over unread ({files} files)");
        assert!(scene.good(&["show", name]).contains(&plural), "{plural}");
    }
}
