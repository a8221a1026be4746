//! What the tests of several profiles need.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use stillframe_storage::SystemClock;
use tokio_util::sync::CancellationToken;

use crate::{Context, Event};

/// Surroundings of a capture: the real clock, names that no other capture of this process has, and a record of the events.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    clock: SystemClock,
    pub(crate) cancel: CancellationToken,
    pub(crate) events: Mutex<Vec<Event>>,
}

impl Surroundings {
    /// Calls `work` with a context made of these.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Context<'_>) -> T) -> T {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let events = |event| self.events.lock().unwrap().push(event);
        let name = || format!("{:08x}{:08x}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        work(&Context { clock: &self.clock, cancel: &self.cancel, events: &events, random_name: &name })
    }

    /// The warnings so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let warning = |event: &Event| match event {
            Event::Warning(text) => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(warning).collect()
    }
}

/// Everything about a file that a capture must leave as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Noted {
    inode: u64,
    links: u64,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
}

/// Every file and directory below `dir`, itself included.
pub(crate) fn inventory(dir: &Path) -> BTreeMap<PathBuf, Noted> {
    let mut noted = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            // Its program removed it since the listing.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.unwrap(),
        };
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        noted.insert(
            path,
            Noted {
                inode: meta.ino(),
                links: meta.nlink(),
                size: meta.size(),
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                modified: (meta.mtime(), meta.mtime_nsec()),
            },
        );
    }
    noted
}

/// Copies a directory as it lies, holes excepted: what a crash at this moment would leave.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The user and group `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// Whether this process may become somebody else.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Set in a process that [`again`] started.
const CHILD: &str = "STILLFRAME_TEST_CHILD";

/// In a child of [`again`]: the argument that it was given.
pub(crate) fn child_argument() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs one test of this program again, in a process of its own and as another user, with a directory as its argument; it
/// must succeed. Nobody but root can become another user: without that it stays the same one.
pub(crate) fn again_as(test: &str, user: u32, argument: &Path) {
    let mut command = again(test, argument);
    if is_root() {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// A command that runs one test of this program again, with a directory as its argument.
pub(crate) fn again(test: &str, argument: &Path) -> Command {
    // The build directory may be closed to others.
    let program = argument.join(".test-program");
    if !program.exists() {
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        // Until now another thread's child may have had it open for writing: then the system would not run it.
        let busy = || match Command::new(&program).arg("--version").output() {
            Err(error) => error.kind() == std::io::ErrorKind::ExecutableFileBusy,
            Ok(_) => false,
        };
        while busy() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, argument).current_dir("/");
    command
}
