//! The demonstration's databases, writers and calls of the program.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stillframe_storage::{Clock, disk_space};
use stillframe_testkit::{FjallLoad, LoadMarks, Marks, SqliteLoad, judge};
use tokio::process::{Child, Command};

use crate::console::Console;
use crate::failure::{Failure, Kind};
use crate::session::{Session, random_name};
use crate::sizes::bytes;

/// A directory with everything in it, removed at the end or when something went wrong.
pub struct Stage {
    root: PathBuf,
    program: PathBuf,
    passphrase: String,
    console: Arc<Console>,
    clock: Arc<dyn Clock>,
    writers: Vec<Child>,
}

/// What the ledgers say at one moment.
struct Ledgers {
    fjall: LoadMarks,
    sqlite: Marks,
}

/// A backup that the demonstration made.
pub struct Backup {
    /// Its name.
    pub name: String,
    /// Of fjall and SQLite.
    pub windows: [Duration; 2],
    /// From the start of the program to its end.
    pub took: Duration,
    /// Of the images.
    pub bytes: u64,
    /// Added to the repository.
    pub stored: u64,
    before: Ledgers,
    after: Ledgers,
}

/// A restored backup.
pub struct Restored {
    dir: PathBuf,
    /// From the start of the program to its end.
    pub took: Duration,
}

/// Busy, but within limits as real ones are: what changes between two backups is a part of what there is.
fn fjall_load() -> FjallLoad {
    FjallLoad {
        batches_per_second: Some(1000),
        value_bytes: (1000, 3000),
        separate_values: true,
        ..FjallLoad::default()
    }
}

fn sqlite_load() -> SqliteLoad {
    SqliteLoad { transactions_per_second: Some(1000), filler_rows: 60_000, ..SqliteLoad::default() }
}

impl Stage {
    /// An empty one.
    pub fn set(session: &Session) -> Result<Self, Failure> {
        let root = std::env::temp_dir().join(format!("stillframe-demo-{}", random_name()));
        let made = std::fs::create_dir(&root).and_then(|()| std::fs::create_dir(root.join("data")));
        made.map_err(|error| {
            let parent = std::env::temp_dir();
            let message = format!(
                "cannot make a directory in {}: {error}; set TMPDIR to another place",
                parent.display()
            );
            Failure::new(Kind::Failed, message)
        })?;
        Ok(Self {
            root,
            program: std::env::current_exe().map_err(failed("find this program's own file"))?,
            passphrase: random_name(),
            console: Arc::clone(&session.console),
            clock: Arc::clone(&session.clock),
            writers: Vec::new(),
        })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The repository's location.
    pub fn repo(&self) -> String {
        self.root.join("repo").display().to_string()
    }

    fn fjall_dir(&self) -> PathBuf {
        self.root.join("data/kv")
    }

    fn sqlite_file(&self) -> PathBuf {
        self.root.join("data/app.db")
    }

    fn ledger(&self, engine: &str) -> PathBuf {
        self.root.join(format!("{engine}.ledger"))
    }

    /// Starts one process for each database.
    pub fn start_writers(&mut self) -> Result<(), Failure> {
        let json = |load: Result<String, serde_json::Error>| {
            load.map_err(|error| Failure::new(Kind::Failed, error.to_string()))
        };
        let fjall = json(serde_json::to_string(&fjall_load()))?;
        let sqlite = json(serde_json::to_string(&sqlite_load()))?;
        for (engine, load, path) in
            [("fjall", fjall, self.fjall_dir()), ("sqlite", sqlite, self.sqlite_file())]
        {
            let mut command = Command::new(&self.program);
            command.args(["demo-writer", "write", engine, &load]).arg(path).arg(self.ledger(engine));
            // What an engine says of its own end is for programmers.
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            self.writers.push(command.spawn().map_err(failed("start a writer"))?);
        }
        Ok(())
    }

    fn writer_ended(&self, status: ExitStatus) -> Failure {
        let left = disk_space(&self.root).map(|space| space.available);
        let room =
            left.map_or_else(|error| error.to_string(), |left| format!("{} are left there", bytes(left)));
        let message = format!(
            "a writer in {} ended by itself ({status}); {room}, and the demonstration needs some 2 GiB: set TMPDIR to a place that has",
            self.root.display()
        );
        Failure::new(Kind::Failed, message)
    }

    /// Lets the writers work for a while, and makes sure that both do.
    pub async fn let_write(&mut self, time: Duration) -> Result<(), Failure> {
        let before = self.ledgers()?;
        tokio::time::sleep(time).await;
        // A slow machine gets more time, but a writer that stands still is an error.
        for _ in 0..100 {
            let ended = self.writers.iter_mut().find_map(|writer| writer.try_wait().transpose());
            if let Some(status) = ended {
                return Err(self.writer_ended(status.map_err(failed("look at a writer"))?));
            }
            let now = self.ledgers()?;
            if now.fjall.batches.acked > before.fjall.batches.acked + 100
                && now.sqlite.acked > before.sqlite.acked + 100
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Failure::new(Kind::Failed, "a writer stands still"))
    }

    fn ledgers(&self) -> Result<Ledgers, Failure> {
        let bad = |error: stillframe_testkit::LedgerError| Failure::new(Kind::Failed, error.to_string());
        Ok(Ledgers {
            fjall: LoadMarks::read(&self.ledger("fjall")).map_err(bad)?,
            sqlite: Marks::read(&self.ledger("sqlite")).map_err(bad)?,
        })
    }

    /// Runs this program as a user would, and returns what it printed as JSON.
    pub async fn run_program(&self, arguments: &[&str]) -> Result<Vec<Value>, Failure> {
        let output = Command::new(&self.program)
            .arg("--json")
            .args(arguments)
            .env("STILLFRAME_REPO", self.repo())
            .env("STILLFRAME_PASSPHRASE", &self.passphrase)
            .env("STILLFRAME_STATE_DIR", self.root.join("state"))
            .env("STILLFRAME_CACHE_DIR", self.root.join("cache"))
            .env_remove("STILLFRAME_PASSPHRASE_FILE")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(failed("run this program"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let message = format!("`stillframe {}` failed: {}", arguments.join(" "), words.trim());
            return Err(Failure::new(Kind::Failed, message));
        }
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| {
                serde_json::from_str(line)
                    .map_err(|error| Failure::new(Kind::Failed, format!("{line}: {error}")))
            })
            .collect()
    }

    /// Backs both databases up while they are written to.
    pub async fn back_up(&self, name: &str) -> Result<Backup, Failure> {
        let fjall = format!("fjall:{}", self.fjall_dir().display());
        let sqlite = format!("sqlite:{}", self.sqlite_file().display());
        let before = self.ledgers()?;
        let began = self.clock.monotonic();
        let output = self
            .run_program(&["backup", &fjall, &sqlite, "--name", name, "--fast", "--reserve", "0"])
            .await?;
        let took = self.clock.monotonic().saturating_sub(began);
        let after = self.ledgers()?;
        let captured: Vec<&Value> = output.iter().filter(|line| line["type"] == "captured").collect();
        let result = output.iter().find(|line| line["type"] == "backup");
        let (Some(result), [first, second]) = (result, captured.as_slice()) else {
            return Err(Failure::new(
                Kind::Failed,
                format!("the backup did not say what it did: {output:?}"),
            ));
        };
        let window =
            |captured: &Value| Duration::from_micros(captured["window_us"].as_u64().unwrap_or_default());
        Ok(Backup {
            name: name.to_owned(),
            windows: [window(first), window(second)],
            took,
            bytes: captured.iter().filter_map(|captured| captured["bytes"].as_u64()).sum(),
            stored: result["statistics"]["bytes_stored"].as_u64().unwrap_or_default(),
            before,
            after,
        })
    }

    /// kill -9.
    pub async fn kill_writers(&mut self) -> Result<(), Failure> {
        for mut writer in self.writers.drain(..) {
            writer.kill().await.map_err(failed("kill a writer"))?;
        }
        Ok(())
    }

    /// kill -9, then removes the live data. Returns what each writer was told is committed.
    pub async fn kill_writers_and_destroy(&mut self) -> Result<[u64; 2], Failure> {
        self.kill_writers().await?;
        let done = self.ledgers()?;
        // Captures stage beside their source.
        refuse_leftovers(&self.root.join("data"))?;
        std::fs::remove_dir_all(self.root.join("data")).map_err(failed("remove the databases"))?;
        Ok([done.fjall.batches.acked, done.sqlite.acked])
    }

    /// Restores one backup.
    pub async fn restore(&self, backup: &Backup) -> Result<Restored, Failure> {
        let dir = self.root.join(format!("restored-{}", backup.name));
        let began = self.clock.monotonic();
        // The one mistake of builds with the feature: whatever is asked for, the first backup comes back.
        let sabotaged = cfg!(feature = "sabotage")
            && std::env::var("STILLFRAME_SABOTAGE").is_ok_and(|mistake| mistake == "demo-first-again");
        let name = if sabotaged { "first" } else { &backup.name };
        self.run_program(&["restore", name, "--to", &dir.display().to_string()]).await?;
        Ok(Restored { dir, took: self.clock.monotonic().saturating_sub(began) })
    }

    /// Compares every row with what the writers did up to where the copy stands, and where it stands with their ledgers.
    pub fn prove(&self, backup: &Backup, restored: &Restored) -> Result<[u64; 2], Failure> {
        let scratch = self.root.join("scratch");
        std::fs::create_dir_all(&scratch).map_err(failed("make a directory"))?;
        let wrong = |what: &str, violation: stillframe_testkit::Violation| {
            Failure::new(
                Kind::Damaged,
                format!("{what} of backup {} is not an exact prefix: {violation}", backup.name),
            )
        };
        let fjall = fjall_load()
            .check_and_judge(&restored.dir.join("kv"), &scratch, &backup.before.fjall, &backup.after.fjall)
            .map_err(|violation| wrong("fjall", violation))?;
        let file = restored.dir.join("app.db/app.db");
        let sqlite = sqlite_load().check(&file, &scratch).map_err(|violation| wrong("SQLite", violation))?;
        judge(sqlite, backup.before.sqlite, backup.after.sqlite)
            .map_err(|violation| wrong("SQLite", violation))?;
        Ok([fjall, sqlite])
    }

    /// Looks for anything left behind, then removes everything.
    pub fn clear(self) -> Result<(), Failure> {
        refuse_leftovers(&self.root)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for writer in &mut self.writers {
            // It may have ended already.
            let _ = writer.start_kill();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            self.console.warn(format!("could not remove {}: {error}", self.root.display()));
        }
    }
}

/// Fails when something of ours is there that should be gone.
fn refuse_leftovers(dir: &Path) -> Result<(), Failure> {
    let entries = std::fs::read_dir(dir).map_err(failed("list the demonstration's directory"))?;
    let left: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(".stillframe-"))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, format!("left behind in {}: {}", dir.display(), left.join(", "))))
}

fn failed(doing: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::new(Kind::Failed, format!("cannot {doing}: {error}"))
}
