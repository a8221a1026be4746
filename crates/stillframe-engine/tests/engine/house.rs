//! A small house for the tests: a place, a repository, and the verbs with everything that they take from outside.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use stillframe_capture::{CaptureOptions, Source};
use stillframe_engine::create::{CreateOptions, CreateOutcome, Origin, create};
use stillframe_engine::restore::{RestoreOptions, RestoreOutcome, restore};
use stillframe_engine::verify::{Level, VerifyOptions, VerifyOutcome, verify};
use stillframe_engine::{EngineError, Event, NamedSource, Reserve, Surroundings};
use stillframe_jobs::{CpuShare, History, Job, Pace};
use stillframe_repo::{BackupId, Encryption, InitOptions, Passphrase, PassphraseCost, Repository, Unlock};
use stillframe_storage::object_store::ObjectStore;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::{Clock, SystemClock};
use stillframe_testkit::FaultStore;

pub const PASSPHRASE: &str = "correct horse";

pub struct House {
    pub dir: tempfile::TempDir,
    pub store: FaultStore,
    pub repo: Repository,
    pub warnings: Arc<Mutex<Vec<String>>>,
    pub surroundings: Surroundings,
    history: History,
}

impl House {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let store = FaultStore::new(Arc::new(InMemory::new()));
        let encryption = Encryption::Passphrase(Passphrase::from(PASSPHRASE));
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        let options =
            InitOptions { cost, pack_size: 1 << 20, ..InitOptions::new(encryption, Arc::clone(&clock)) };
        let as_dyn: Arc<dyn ObjectStore> = Arc::new(store.clone());
        let repo = Repository::init(as_dyn, &options, &dir.path().join("cache")).await.unwrap();
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&warnings);
        let names = AtomicU64::new(1);
        let surroundings = Surroundings {
            clock: Arc::clone(&clock),
            report: Arc::new(move |event| {
                if let Event::Warning(text) = event {
                    told.lock().unwrap().push(text);
                }
            }),
            random_name: Arc::new(move || format!("{:016x}", names.fetch_add(1, Ordering::Relaxed))),
            share: CpuShare::on_this_machine(Pace::Fast, None),
        };
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let history = History::in_memory(clock).unwrap();
        Self { dir, store, repo, warnings, surroundings, history }
    }

    /// Where sources are.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// Where restored things go.
    pub fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The repository, as if it were opened only now.
    pub fn opening(&self) -> impl Future<Output = Result<Repository, EngineError>> {
        std::future::ready(Ok(self.repo.clone()))
    }

    pub fn job(&self) -> Job {
        self.history.start("test", "test")
    }

    pub fn options(&self, sources: &[&str]) -> CreateOptions {
        let named = |text: &&str| {
            let source: Source = text.parse().unwrap();
            NamedSource { name: source.path.file_name().unwrap().to_str().unwrap().to_owned(), source }
        };
        CreateOptions {
            sources: sources.iter().map(named).collect(),
            name: None,
            tags: Vec::new(),
            capture: CaptureOptions::default(),
            reserve: Reserve::Bytes(0),
            bandwidth: None,
            anew: false,
            cache_dir: self.dir.path().join("cache"),
            origin: Origin::default(),
        }
    }

    pub async fn back_up(&self, sources: &[&str]) -> Result<CreateOutcome, EngineError> {
        create(self.opening(), &self.options(sources), &self.job(), &self.surroundings).await
    }

    pub async fn restore(&self, backup: BackupId, target: &Path) -> Result<RestoreOutcome, EngineError> {
        let options =
            RestoreOptions { target: target.to_owned(), source: None, map: [].into(), host: String::new() };
        restore(&self.repo, backup, &options, &self.job(), &self.surroundings).await
    }

    pub async fn verify(&self, backup: BackupId, level: Level) -> Result<VerifyOutcome, EngineError> {
        let options = VerifyOptions { level, staging: self.dir.path().to_owned(), host: "here".into() };
        verify(&self.repo, backup, &options, &self.job(), &self.surroundings).await
    }

    /// The repository as another machine sees it: opened anew, without a cache.
    pub async fn opened_elsewhere(&self) -> Repository {
        let cache = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let unlock = Unlock::Passphrase(Passphrase::from(PASSPHRASE));
        Repository::open(Arc::new(self.store.clone()), &unlock, &cache).await.unwrap()
    }

    /// Names of ours that stand beside sources or targets; there must be none after any verb.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for dir in [self.dir.path().to_owned(), self.dir.path().join("data")] {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with(".stillframe") {
                    found.push(path);
                }
            }
        }
        found
    }
}
