//! Processes that share one history, some of which are killed: this program starts itself again as those processes.
#![expect(clippy::unwrap_used, reason = "a test, though it has a main of its own")]

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stillframe_jobs::{History, Phase, State};
use stillframe_storage::SystemClock;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", path, name] => work(Path::new(path), name),
        ["hang", path] => hang(Path::new(path)),
        // What the test runner passes on (filters, --nocapture) means nothing here.
        _ => {
            processes_share_a_history_and_the_killed_are_repaired();
            println!("processes_share_a_history_and_the_killed_are_repaired ... ok");
        }
    }
}

fn open(path: &Path) -> History {
    History::open(path, Arc::new(SystemClock::new())).unwrap()
}

fn work(path: &Path, name: &str) {
    for number in 0..20 {
        let job = open(path).start("create", &format!("{name}/{number}"));
        assert!(job.id().is_some(), "the history took every job");
        job.enter(Phase::Transferring).unwrap();
        job.succeed(json!(number));
    }
}

fn hang(path: &Path) {
    let job = open(path).start("create", "hangs");
    job.enter(Phase::Capturing).unwrap();
    loop {
        std::thread::sleep(Duration::from_mins(1));
    }
}

fn spawn(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(arguments).spawn().unwrap()
}

fn processes_share_a_history_and_the_killed_are_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let place = path.to_str().unwrap();
    let mut hanging = spawn(&["hang", place]);
    let mut workers: Vec<_> = ["a", "b", "c"].iter().map(|name| spawn(&["work", place, name])).collect();
    // Two that are killed at some moment of their work, mid-write for all we know.
    let mut doomed: Vec<_> = ["x", "y"].iter().map(|name| spawn(&["work", place, name])).collect();
    for (child, wait) in doomed.iter_mut().zip([30, 90]) {
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }

    let history = open(&path);
    assert_eq!(history.opening().set_aside, None);
    let hangs = || {
        let all = history.list(1000).unwrap();
        all.into_iter()
            .find(|record| record.subject == "hangs" && record.state != State::Working(Phase::Started))
    };
    let record = (0..400)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(25));
            hangs()
        })
        .expect("the hanging one got as far as capturing");
    assert_eq!(record.state, State::Working(Phase::Capturing), "nobody repaired a living process's row");
    for name in ["a", "b", "c"] {
        let all = history.list(1000).unwrap();
        let done = all.iter().filter(|record| record.subject.starts_with(&format!("{name}/")));
        assert_eq!(done.filter(|record| record.state == State::Succeeded).count(), 20, "{name}");
    }
    let unfinished = |history: &History| {
        let all = history.list(1000).unwrap();
        all.into_iter()
            .filter(|record| !record.state.is_ended())
            .map(|record| record.subject)
            .collect::<Vec<_>>()
    };
    assert_eq!(unfinished(&history), ["hangs"]);

    hanging.kill().unwrap();
    hanging.wait().unwrap();
    let reopened = open(&path);
    assert_eq!(reopened.opening().repaired, [record.id]);
    assert_eq!(unfinished(&reopened), [""; 0]);
    let failure = reopened.get(record.id).unwrap().unwrap().failure.unwrap();
    assert!(failure.text.contains("its process ended while capturing"), "{}", failure.text);
}
