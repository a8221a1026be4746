//! From options to an open repository.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use jiff::SignedDuration;
use stillframe_repo::{
    BackupId, CONFIG_OBJECT, Encryption, InitOptions, LocalDirs, Manifest, Passphrase, Repository, Unlock,
    top_level_names,
};
use stillframe_storage::object_store::ObjectStore;
use stillframe_storage::{
    Clock, Location, LocationError, MadeDirs, UploadLock, lies_within, open, path_text,
};

use crate::cli::{Labels, PassphraseArgs, RepoArgs};
use crate::commands::from_here;
use crate::failure::{Failure, Kind, kind_of};
use crate::passphrase::{Question, Secret, is_given, obtain};
use crate::place;
use crate::session::Session;

/// The environment variable that may hold the passphrase.
pub const PASSPHRASE: &str = "STILLFRAME_PASSPHRASE";

/// A repository that is known to be there, and all that opening it needs to be asked.
pub struct Opening {
    location: Location,
    dirs: LocalDirs,
    state: State,
}

enum State {
    /// Without encryption.
    Open(Repository),
    Locked(Arc<dyn ObjectStore>, Unlock),
}

impl Opening {
    /// Asks for what is missing. A repository without encryption opens without asking for anything.
    pub async fn prepare(args: &RepoArgs) -> Result<Self, Failure> {
        let location: Location = args.repo.parse()?;
        let store = open_store(&location)?;
        let dirs = place::local_dirs();
        let state = match Repository::open(store.clone(), &Unlock::None, dirs.clone()).await {
            // Whoever gives a passphrase believes that it is encrypted: then somebody put another one in its place.
            Ok(_) if is_given(args.passphrase.passphrase_file.as_deref(), PASSPHRASE) => {
                return Err(in_place(&location, stillframe_repo::Error::NotEncrypted));
            }
            Ok(repository) => State::Open(repository),
            Err(stillframe_repo::Error::PassphraseNeeded) => {
                let question = Question { prompt: "Passphrase: ", variable: PASSPHRASE, twice: false };
                let secret = obtain(args.passphrase.passphrase_file.as_deref(), question)?
                    .ok_or_else(|| Failure::new(Kind::Passphrase, needed(&location)))?;
                State::Locked(store, Unlock::Passphrase(passphrase(&secret)))
            }
            Err(error) => return Err(in_place(&location, error)),
        };
        Ok(Self { location, dirs, state })
    }

    /// The passphrase that it is opened with; none without encryption.
    pub fn passphrase(&self) -> Option<Passphrase> {
        match &self.state {
            State::Locked(_, Unlock::Passphrase(passphrase)) => Some(passphrase.clone()),
            State::Locked(_, Unlock::None) | State::Open(_) => None,
        }
    }

    /// To be held while something is written into it.
    pub fn uploads(&self) -> Option<UploadLock> {
        self.warn_of_another_owner();
        UploadLock::take(&self.location)
    }

    /// What is put belongs to whoever puts it, and nobody else can read it.
    fn warn_of_another_owner(&self) {
        let Location::Directory(place) = &self.location else { return };
        let (Ok(meta), me) = (std::fs::metadata(place), rustix::process::geteuid().as_raw()) else { return };
        if meta.uid() != me {
            let (place, owner) = (place.display(), meta.uid());
            tracing::warn!(
                "the repository {place} belongs to user {owner}, and what is put there now to user {me}: its owner will not be able \
                 to read that, and so neither to list nor to make backups there; run as user {owner}, or give all of it back with chown"
            );
        }
    }

    /// Refuses sources that the repository lies in: each backup would grow by the one before, and a database's own directory is no
    /// place for anything else.
    pub fn refuse_within<'a>(&self, sources: impl IntoIterator<Item = &'a Path>) -> Result<(), Failure> {
        let Location::Directory(repo) = &self.location else { return Ok(()) };
        let within = |source: &&Path| lies_within(repo, source);
        match sources.into_iter().find(within) {
            Some(source) => Err(Failure::new(
                Kind::Usage,
                format!(
                    "the repository {} lies in the source {}; keep it elsewhere",
                    repo.display(),
                    source.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// Unlocks it, which takes a tenth of a second of a processor.
    pub async fn open(self) -> Result<Repository, Failure> {
        match self.state {
            State::Open(repository) => Ok(repository),
            State::Locked(store, unlock) => Repository::open(store, &unlock, self.dirs)
                .await
                .map_err(|error| in_place(&self.location, error)),
        }
    }
}

/// One that is dated later than this has a wrong date.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(1);

/// Which backup is meant. `latest` goes by the clocks of those who made the backups, so one from the future stands before whatever
/// was made since: that is said.
pub async fn pick(
    session: &Session,
    repo: &Repository,
    text: &str,
    labels: &Labels,
) -> Result<BackupId, Failure> {
    if text != "latest" {
        if labels.words().is_some() {
            let message = format!("--name and --tag narrow `latest` down, and {text} is asked for");
            return Err(Failure::new(Kind::Usage, message));
        }
        return pick_named(session, repo, text).await;
    }
    let latest = repo.latest(|backup| labels.fit(&backup.draft)).await?;
    let Some(backup) = latest.backup else {
        let mut message = match labels.words() {
            Some(words) => format!("no backup {words}; `stillframe snapshots` lists all"),
            None => "the repository has no backups".to_owned(),
        };
        if !latest.unfinished.is_empty() {
            message = format!("{message}; {}", unfinished_words(&latest.unfinished));
        }
        return Err(Failure::new(Kind::NoBackup, message));
    };
    let (id, created) = (backup.id, backup.created);
    if !latest.unfinished.is_empty() {
        session.console.warn(unfinished_words(&latest.unfinished));
    }
    if created.duration_since(session.clock.now()) > CLOCKS_DIFFER {
        session.console.warn(format!(
            "the latest backup, {id}, is dated {created}, which is still to come: a clock is or was wrong, and a backup that is \
             newer may count as older; `stillframe snapshots` lists all, an id picks one"
        ));
    }
    Ok(id)
}

/// By name or id. A backup whose seal was lost may have the same name and be newer.
async fn pick_named(session: &Session, repo: &Repository, text: &str) -> Result<BackupId, Failure> {
    let found = match repo.resolve(text).await {
        Ok(id) if id.to_string() == text => return Ok(id),
        found @ (Ok(_) | Err(stillframe_repo::Error::NotFound { .. })) => found,
        Err(error) => return Err(error.into()),
    };
    let may_be_meant = |(id, manifest): (BackupId, Option<Manifest>)| {
        let is_called = manifest.is_none_or(|manifest| manifest.draft.name.as_deref() == Some(text));
        (is_called || id.to_string().starts_with(text)).then_some(id)
    };
    let others: Vec<BackupId> = repo.unsealed().await?.into_iter().filter_map(may_be_meant).collect();
    match found {
        Ok(id) => {
            if !others.is_empty() {
                session.console.warn(unfinished_words(&others));
            }
            Ok(id)
        }
        Err(error) if others.is_empty() => Err(error.into()),
        Err(error) => {
            let message = format!("{error}; {}", unfinished_words(&others));
            Err(Failure::new(Kind::NoBackup, message))
        }
    }
}

/// What a manifest without a seal is: of a write that runs or was killed, or one whose seal somebody removed.
pub const UNFINISHED: &str = "unfinished (written, not sealed)";

/// Who looks for the newest backup must be able to tell that a newer one may have lost its seal.
pub fn unfinished_words(unfinished: &[BackupId]) -> String {
    const NAMED: usize = 3;
    let mut ids: Vec<String> = unfinished.iter().take(NAMED).map(ToString::to_string).collect();
    if unfinished.len() > NAMED {
        ids.push("…".to_owned());
    }
    format!(
        "{} {UNFINISHED}: a backup that runs or was killed, or one whose seal was lost, which may be newer ({})",
        unfinished.len(),
        ids.join(", ")
    )
}

/// Refuses a place in any repository, not only in the one that is asked for something: whatever else stands there is in the way of its
/// objects, and may be taken for one.
pub fn refuse_in_repository(option: &str, place: &Path) -> Result<(), Failure> {
    let place = from_here(place);
    // Links are followed; of a place that is not there yet, what is there decides.
    let existing = place.ancestors().find_map(|place| std::fs::canonicalize(place).ok()).unwrap_or_default();
    match existing.ancestors().find(|dir| dir.join(CONFIG_OBJECT).is_file()) {
        None => Ok(()),
        Some(repo) => Err(Failure::new(
            Kind::Usage,
            format!(
                "{option} {} lies in the repository {}; choose a place outside",
                place.display(),
                repo.display()
            ),
        )),
    }
}

/// Where a repository is, in words that mean the same wherever somebody reads them.
pub fn place_text(repo: &str) -> String {
    match repo.parse() {
        Ok(Location::Directory(path)) => path_text(from_here(&path)),
        Ok(location) => location.to_string(),
        // What it is not is told by whoever opens it.
        Err(_) => repo.to_owned(),
    }
}

/// The store of a repository, without opening that.
pub fn open_store(location: &Location) -> Result<Arc<dyn ObjectStore>, Failure> {
    open(location).map_err(|error| missing(location, error))
}

/// Opens the repository that the options name.
pub async fn open_repository(args: &RepoArgs) -> Result<Repository, Failure> {
    Opening::prepare(args).await?.open().await
}

/// Opens it for what writes into it; the lock is to be held meanwhile.
pub async fn open_to_write(args: &RepoArgs) -> Result<(Repository, Option<UploadLock>), Failure> {
    let opening = Opening::prepare(args).await?;
    let uploads = opening.uploads();
    Ok((opening.open().await?, uploads))
}

fn in_place(location: &Location, error: stillframe_repo::Error) -> Failure {
    let mut failure = Failure::from(error);
    failure.message = format!("{location}: {}", failure.message);
    failure
}

/// Makes a new repository.
pub async fn init_repository(
    url: &str,
    passphrase_args: &PassphraseArgs,
    no_encryption: bool,
    clock: Arc<dyn Clock>,
) -> Result<Repository, Failure> {
    let location: Location = url.parse()?;
    let encryption = if no_encryption {
        Encryption::None
    } else {
        let question = Question { prompt: "New passphrase: ", variable: PASSPHRASE, twice: true };
        let secret = obtain(passphrase_args.passphrase_file.as_deref(), question)?.ok_or_else(|| {
            Failure::new(
                Kind::Passphrase,
                "no passphrase: set STILLFRAME_PASSPHRASE, use --passphrase-file, or choose --no-encryption",
            )
        })?;
        Encryption::Passphrase(passphrase(&secret))
    };
    let mut made = None;
    if let Location::Directory(path) = &location {
        if path.exists() && !path.is_dir() {
            let message = format!("{}: a repository is a directory, and this is none", path.display());
            return Err(Failure::new(Kind::Usage, message));
        }
        let dirs = MadeDirs::make(path).map_err(|error| {
            Failure::new(kind_of(&error), format!("cannot make {}: {error}", path.display()))
        })?;
        made = Some(dirs);
    }
    let store = open(&location)?;
    refuse_strangers(&location)?;
    // Sweeps: only now is it known that nothing here is anybody else's.
    let _uploads = UploadLock::take(&location);
    let options = InitOptions { label: "first".to_owned(), ..InitOptions::new(encryption, clock) };
    let repository = Repository::init(store, &options, place::local_dirs()).await;
    let repository = repository.map_err(|error| in_place(&location, error))?;
    if let Some(made) = made {
        made.keep();
    }
    Ok(repository)
}

/// What a making that was cut short leaves is ours; anything else says that somebody means another directory.
fn refuse_strangers(location: &Location) -> Result<(), Failure> {
    let Location::Directory(path) = location else { return Ok(()) };
    let failed = |error| Failure::new(Kind::Failed, format!("cannot list {}: {error}", path.display()));
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let is_ours = top_level_names().any(|ours| name == ours);
        // A file system's own.
        if !is_ours && name != "lost+found" {
            let message = format!(
                "{} is not empty: {} is there; give a new directory, or one of its own below it",
                path.display(),
                name.display()
            );
            return Err(Failure::new(Kind::Usage, message));
        }
    }
    Ok(())
}

/// Wrapped so that it is wiped and never printed.
pub fn passphrase(secret: &Secret) -> Passphrase {
    Passphrase::from(secret.as_str())
}

fn missing(location: &Location, error: LocationError) -> Failure {
    let is_missing = matches!(error, LocationError::Missing { .. });
    let mut failure = Failure::from(error);
    if is_missing {
        failure.message = format!(
            "{}; is its disk mounted? Else make a repository with `stillframe repo init {location}`",
            failure.message
        );
    }
    failure
}

fn needed(location: &Location) -> String {
    format!("{location} is encrypted: set STILLFRAME_PASSPHRASE or use --passphrase-file")
}
