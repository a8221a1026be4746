//! Databases whose files become other ones of the same name between the steps of a capture.

use fjall::{Database, KeyspaceCreateOptions};

use super::attempt::Attempts;
use super::sabotage::Sabotage;
use super::seal::seal;
use super::test_sample::{keep, source};
use crate::CaptureOptions;
use crate::image::ImageBuilder;
use crate::pin::SourceDir;
use crate::staging::Staging;
use crate::test_support::Surroundings;
use crate::window::until_still;

/// A database that is put back from elsewhere begins with the same number again.
#[test]
fn a_journal_of_the_same_number_that_is_another_file_is_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let journal = path.join("0.jnl");
    let db = Database::builder(&path).open().unwrap();
    let rows = db.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    rows.insert("first", "1").unwrap();
    let earlier = std::fs::read(&journal).unwrap();
    rows.insert("second", "2").unwrap();
    drop((rows, db));
    let around = Surroundings::default();
    let image = around.with(|context| {
        let options = CaptureOptions::default();
        let staging = Staging::for_source(&path, &options, context).unwrap();
        let root = SourceDir::open(&path).unwrap();
        let mut attempts = Attempts::new(root, ImageBuilder::new(staging), Sabotage::None).unwrap();
        attempts.prepare().unwrap();
        std::fs::write(path.join("new"), &earlier).unwrap();
        std::fs::rename(path.join("new"), &journal).unwrap();
        let still = until_still(&source(&path).path, options.deadline, context, || attempts.attempt(context));
        seal(attempts, still.unwrap(), context).unwrap()
    });
    let target = dir.path().join("image");
    keep(image, &target);
    let image = Database::builder(&target).open().unwrap();
    let rows = image.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    let has = |key: &str| rows.contains_key(key).unwrap();
    assert!(has("first") && !has("second"), "the journal that was there at the instant");
}
