//! Images that stay, and the places where they and restored directories come to be.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::house::House;
use stillframe_capture::CaptureOptions;
use stillframe_engine::{
    EngineError, Event, ImageOptions, ImageOutcome, Kind, Reserve, Surroundings, create_image,
};
use stillframe_testkit::write_files;

async fn keep(
    house: &House,
    surroundings: &Surroundings,
    tree: &Path,
    target: &Path,
) -> Result<ImageOutcome, EngineError> {
    let source = format!("files:{}", tree.display()).parse().unwrap();
    let options = ImageOptions { capture: CaptureOptions::default(), reserve: Reserve::Bytes(0), copy: true };
    create_image(&source, target, &options, &house.job(), surroundings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_above_an_image_is_made_before_the_capture_and_goes_again_if_it_fails() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 2, 1000, 1, 1.0).unwrap();
    let captures = Arc::new(Mutex::new(0));
    let (counted, report) = (Arc::clone(&captures), Arc::clone(&house.surroundings.report));
    let count = move |event| {
        *counted.lock().unwrap() += u32::from(matches!(event, Event::Capturing { .. }));
        report(event);
    };
    let surroundings = Surroundings { report: Arc::new(count), ..house.surroundings.clone() };
    let target = house.out("made/for/it");
    keep(&house, &surroundings, &tree, &target).await.unwrap();
    assert!(target.join("00000/00000001.dat").is_file());
    assert_eq!(*captures.lock().unwrap(), 1);

    // Where nothing can be made, nothing is captured.
    let error = keep(&house, &surroundings, &tree, Path::new("/proc/none/such")).await.unwrap_err();
    assert!(error.to_string().contains("/proc/none") && error.kind() != Kind::Source, "{error}");
    assert_eq!(*captures.lock().unwrap(), 1);

    // An image's own description would come to this place: known when everything is captured.
    std::fs::write(tree.join("snapshot.json"), "").unwrap();
    keep(&house, &surroundings, &tree, &house.out("other/place")).await.unwrap_err();
    assert_eq!(*captures.lock().unwrap(), 2);
    assert!(!house.out("other").exists());
    assert_eq!(house.left_behind(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_taken_is_told_in_the_same_words_by_whoever_wants_it() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 1, 1000, 1, 1.0).unwrap();
    let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
    let taken = house.out("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("precious"), "1").unwrap();
    let restored = house.restore(backup, &taken).await.unwrap_err();
    let kept = keep(&house, &house.surroundings, &tree, &taken).await.unwrap_err();
    // As it is told when the place was taken while the work went on.
    let late = EngineError::from(stillframe_capture::CaptureError::Occupied(taken.clone()));
    for error in [&restored, &kept, &late] {
        assert_eq!((error.kind(), error.to_string()), (Kind::Usage, restored.to_string()));
        assert!(matches!(error, EngineError::Occupied(path) if *path == taken), "{error}");
    }
}
