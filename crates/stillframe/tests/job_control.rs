//! A job is looked at, and stopped, from another shell.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use std::process::Stdio;
use std::time::Duration;

use crate::scene::Scene;

#[test]
fn a_running_backup_is_shown_and_cancelled_by_its_number() {
    let scene = Scene::new();
    std::fs::write(scene.path("one/large"), vec![0; 4 << 20]).unwrap();
    std::fs::write(scene.path("one/noise"), (0..4_u32 << 20).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
        .unwrap();
    // It would take minutes.
    let mut running = scene
        .command(&["backup", "files:one", "--reserve", "0", "--limit-bandwidth", "20KiB"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut id = None;
    for _ in 0..600 {
        let jobs = scene.objects(&["jobs"]);
        id = jobs.iter().find(|job| job["state"] == "transferring").map(|job| job["id"].to_string());
        if id.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let id = id.unwrap();
    let shown = scene.good(&["jobs", "show", &id]);
    for part in ["create files:", "transferring", &format!("process  {} runs", running.id())] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let cancelled = scene.good(&["jobs", "cancel", &id]);
    assert!(cancelled.contains(&format!("job {id} was cancelled")), "{cancelled}");
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert!(scene.objects(&["snapshots"]).iter().all(|snapshot| snapshot["type"] != "snapshot"));
    let after = scene.objects(&["jobs", "show", &id]).remove(0);
    assert_eq!(after["state"], "cancelled");
    let states: Vec<&str> =
        after["states"].as_array().unwrap().iter().map(|entry| entry["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["started", "capturing", "transferring", "cancelling", "cancelled"]);
    assert!(scene.bad(&["jobs", "cancel", &id], 1).contains("had ended already: cancelled"));
    assert!(scene.bad(&["jobs", "cancel", "9999"], 2).contains("there is no job 9999"));
    assert!(scene.bad(&["jobs", "show", "x"], 2).contains("invalid"));
    // Nothing of it is left where it worked.
    scene.good(&["check"]);
}
