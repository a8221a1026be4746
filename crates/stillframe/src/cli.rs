//! The command line: what can be asked for, and how.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use stillframe_jobs::{CpuPercent, JobId, Pace};
use stillframe_repo::ManifestDraft;

mod upkeep;

use crate::sizes::{Reserve, Size};
pub use upkeep::{Check, Forget, Pin, Prune, RepairCommand, RepairSnapshots, RetentionArgs, Unpin};

/// Hot backup of live databases (RocksDB, LevelDB, fjall, SQLite), encrypted, verified, without chains.
#[derive(Debug, Parser)]
#[command(name = "stillframe", version, propagate_version = true)]
#[command(after_help = "\
Examples:
  stillframe repo init /backups/node
  stillframe backup rocksdb:/var/lib/node/db -r /backups/node --name nightly
  stillframe snapshots -r /backups/node
  stillframe restore latest -r /backups/node --to /var/lib/node/db-restored

Exit codes:
  0 done                       20 source cannot be captured    30 repository or backup damaged
  1 failed                     21 source too busy              130 cancelled
  2 wrong usage                22 no space
  10 no repository there       23 permission denied
  12 wrong or no passphrase    24 no such backup, or ambiguous

To see more of what it does, set STILLFRAME_LOG: debug, or warn,stillframe_capture=debug")]
pub struct Cli {
    /// Print one JSON object per line on standard output instead of text (docs/json.md)
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but what was asked for, warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What is not given is as this file says [default: $STILLFRAME_CONFIG, ~/.config/stillframe/stillframe.toml or /etc/stillframe/stillframe.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Without what is for the program itself.
    pub fn public_command() -> clap::Command {
        let all = Self::command();
        let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        clap::Command::new("stillframe").args(all.get_arguments().cloned()).subcommands(visible)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up live databases into a repository
    Backup(Backup),
    /// Bring a backup back as a directory
    Restore(Restore),
    /// List the backups of a repository
    #[command(visible_alias = "ls")]
    Snapshots(Snapshots),
    /// Show one backup: its sources, times, warnings and files
    Show(Show),
    /// Check that a backup can be restored
    Verify(Verify),
    /// Check the repository as a whole, and name what is wrong
    Check(Check),
    /// Make the best of a damaged repository
    #[command(
        subcommand,
        after_help = "\
Examples:
  stillframe check --read-data -r /backups/node
  stillframe repair index -r /backups/node
  stillframe repair snapshots -r /backups/node --dry-run"
    )]
    Repair(RepairCommand),
    /// Let backups go: named ones, or all that a policy does not keep
    Forget(Forget),
    /// Give the room back that no backup needs any more
    Prune(Prune),
    /// Protect a backup from being forgotten
    Pin(Pin),
    /// Take the protection away
    Unpin(Unpin),
    /// Make a repository, or look at one
    #[command(
        subcommand,
        after_help = "\
Examples:
  stillframe repo init /backups/node
  stillframe repo info -r /backups/node"
    )]
    Repo(RepoCommand),
    /// Passphrases of a repository
    #[command(
        subcommand,
        after_help = "\
Examples:
  stillframe key add -r /backups/node --label escrow
  stillframe key list -r /backups/node"
    )]
    Key(KeyCommand),
    /// Images without a repository: plain directories that the engine itself can open
    #[command(
        subcommand,
        after_help = "\
Examples:
  stillframe image create rocksdb:/var/lib/node/db --to /var/lib/node/image
  stillframe image validate /var/lib/node/image"
    )]
    Image(ImageCommand),
    /// What ran, what is running, how it ended
    Jobs(Jobs),
    /// Watch it work: two busy databases, backed up, destroyed, restored and compared, in under a minute
    #[command(after_help = "\
Examples:
  stillframe demo
  TMPDIR=/mnt/big stillframe demo
It needs some 2 GiB in the temporary directory, and leaves nothing there.")]
    Demo,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  stillframe completions bash > /etc/bash_completion.d/stillframe
  stillframe completions zsh > /usr/local/share/zsh/site-functions/_stillframe
  stillframe completions fish > ~/.config/fish/completions/stillframe.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// A busy database for the demonstration and for tests
    #[command(hide = true)]
    DemoWriter(DemoWriter),
}

impl Command {
    /// What it is called, and who is told how it ended.
    pub fn hooks(&self) -> Option<(&'static str, &Hooks)> {
        match self {
            Self::Backup(args) => Some(("backup", &args.hooks)),
            Self::Restore(args) => Some(("restore", &args.hooks)),
            Self::Verify(args) => Some(("verify", &args.hooks)),
            Self::Check(args) => Some(("check", &args.hooks)),
            Self::Forget(args) => Some(("forget", &args.hooks)),
            Self::Prune(args) => Some(("prune", &args.hooks)),
            Self::Repair(RepairCommand::Snapshots(args)) => Some(("repair snapshots", &args.hooks)),
            _ => None,
        }
    }

    /// How it works beside others. Who restores or repairs waits for it, and what is not told here is done at once.
    pub fn pace(&self) -> Pace {
        let is_fast = match self {
            Self::Backup(args) => args.fast,
            Self::Verify(args) => args.pace.fast,
            Self::Check(args) => args.pace.fast,
            Self::Forget(args) => args.pace.fast,
            Self::Prune(args) => args.pace.fast,
            _ => true,
        };
        if is_fast { Pace::Fast } else { Pace::Polite }
    }

    /// Whether it may put anything into a repository.
    pub fn writes_to_a_repository(&self) -> bool {
        match self {
            Self::Backup(_)
            // That it reads, so that nobody forgets what it reads.
            | Self::Restore(_)
            | Self::Verify(_)
            | Self::Check(_)
            | Self::Repair(_)
            | Self::Forget(_)
            | Self::Prune(_)
            | Self::Pin(_)
            | Self::Unpin(_)
            | Self::Repo(_)
            | Self::Key(_) => true,
            Self::Snapshots(_)
            | Self::Show(_)
            | Self::Image(_)
            | Self::Jobs(_)
            | Self::Demo
            | Self::Completions { .. }
            | Self::DemoWriter(_) => false,
        }
    }
}

/// Which repository, and how to open it.
#[derive(Debug, Args)]
pub struct RepoArgs {
    /// The repository: /path or file:///path
    #[arg(short, long, env = "STILLFRAME_REPO", value_name = "REPO")]
    pub repo: String,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// Where the passphrase comes from.
#[derive(Debug, Args)]
pub struct PassphraseArgs {
    /// Read the passphrase from the first line of this file; otherwise STILLFRAME_PASSPHRASE, otherwise it is asked for
    #[arg(long, value_name = "FILE", env = "STILLFRAME_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// Who is told how it ended.
#[derive(Debug, Args)]
pub struct Hooks {
    /// When it has worked, run this with sh, the outcome as JSON on its standard input (docs/json.md)
    #[arg(long, value_name = "COMMAND", env = "STILLFRAME_ON_SUCCESS", help_heading = "Hooks")]
    pub on_success: Option<String>,
    /// When it has not, run this
    #[arg(long, value_name = "COMMAND", env = "STILLFRAME_ON_FAILURE", help_heading = "Hooks")]
    pub on_failure: Option<String>,
}

/// Beside what else the machine does.
#[derive(Debug, Args)]
pub struct PaceArgs {
    /// Work at normal priority instead of giving way to others
    #[arg(long)]
    pub fast: bool,
}

/// How to capture.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Where the image lives while it is read; best on the same file system as the source [default: beside the source]
    #[arg(long, value_name = "DIR")]
    pub staging: Option<PathBuf>,
    /// Stop when the source's disk has less free space than this [default: the larger of 5% and 1GiB]
    #[arg(long, value_name = "SIZE|PERCENT", allow_negative_numbers = true)]
    pub reserve: Option<Reserve>,
    /// How long to look for a still moment, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = whole(1..=86_400_u64), allow_negative_numbers = true)]
    pub deadline: u64,
    /// RocksDB: the write-ahead log's directory, if OPTIONS does not say it
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// RocksDB: one of db_paths; repeat it in their order
    #[arg(long = "db-path", value_name = "DIR")]
    pub db_paths: Vec<PathBuf>,
    /// RocksDB: one of a column family's cf_paths; repeat it in their order
    #[arg(long = "cf-path", value_name = "FAMILY=DIR", value_parser = parse_cf_path)]
    pub cf_paths: Vec<(String, PathBuf)>,
    /// SQLite in rollback mode: for how long its application's commits may wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = whole(1..=3600_u64), allow_negative_numbers = true)]
    pub sqlite_lock_timeout: u64,
    /// SQLite in WAL mode: give up when the WAL has grown to this size
    #[arg(long, value_name = "SIZE", default_value = "4GiB", allow_negative_numbers = true)]
    pub sqlite_wal_cap: Size,
    /// SQLite: capture also as a user that is neither its owner nor root, or a file that has several names
    #[arg(long)]
    pub force: bool,
}

/// Takes a number of this range. An option with it allows negative numbers, so that it is asked about them, too: clap takes
/// `-1` for another option, and calls what is no number an invalid digit.
fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
    }
}

fn parse_cf_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((family, dir)) if !family.is_empty() && !dir.is_empty() => {
            Ok((family.to_owned(), PathBuf::from(dir)))
        }
        _ => Err("write FAMILY=DIR".to_owned()),
    }
}

/// `backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe backup rocksdb:/var/lib/node/db -r /backups/node
  stillframe backup /var/lib/app/db.sqlite fjall:/var/lib/app/kv --name nightly --tag prod
A source without an engine is recognised by its files. Several sources make one backup, captured as close together in \
time as can be.")]
pub struct Backup {
    /// rocksdb:DIR, leveldb:DIR, fjall:DIR, sqlite:FILE, files:DIR, or a path to be recognised
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<OsString>,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// A label to find the backup by; need not be unique
    #[arg(long)]
    pub name: Option<String>,
    /// A mark for later selection; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Use all cores at normal priority instead of giving way to others
    #[arg(long)]
    pub fast: bool,
    /// Capture, and say what a backup would do; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Rely on nothing that the repository has: read and store everything, for instance after verify found damage
    #[arg(long)]
    pub anew: bool,
    /// Send at most this many bytes per second (for example 20MiB)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub limit_bandwidth: Option<Size>,
    /// Share of the processors that may be used, in percent [default: 50, with --fast 100]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub cpu_percent: Option<CpuPercent>,
    #[command(flatten)]
    pub capture: CaptureArgs,
    #[command(flatten)]
    pub after: After,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// What becomes of earlier backups when a new one is there.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "After it, earlier backups of the same machine, sources and name are forgotten that no rule keeps"
)]
pub struct After {
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// Then give their room back
    #[arg(long)]
    pub prune: bool,
}

/// Which backups are meant.
#[derive(Debug, Args)]
pub struct Labels {
    /// Only those with this name (`latest` is the newest of them)
    #[arg(long)]
    pub name: Option<String>,
    /// Only those with this tag
    #[arg(long)]
    pub tag: Option<String>,
}

impl Labels {
    /// Whether a backup has them.
    pub fn fit(&self, backup: &ManifestDraft) -> bool {
        self.tag.as_ref().is_none_or(|tag| backup.tags.contains(tag))
            && self.name.as_ref().is_none_or(|name| backup.name.as_ref() == Some(name))
    }

    /// As a part of "no backup …". `None`: all are meant.
    pub fn words(&self) -> Option<&'static str> {
        match (&self.name, &self.tag) {
            (Some(_), Some(_)) => Some("has this name and this tag"),
            (Some(_), None) => Some("has this name"),
            (None, Some(_)) => Some("has this tag"),
            (None, None) => None,
        }
    }
}

/// `restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe restore latest -r /backups/node --to /var/lib/node/db-new
  stillframe restore 5f0c -r /backups/node --source kv --to /tmp/kv
The directory appears whole or not at all. A database whose files lay in several directories comes back in named \
directories below it; the options to set are printed.")]
pub struct Restore {
    /// latest, a name, or the beginning of an id; it must fit one backup only
    pub backup: String,
    #[command(flatten)]
    pub labels: Labels,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Where to; must not exist, or be empty. The directory above it must be writable
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Only this source of the backup
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Bring a source or a named directory (wal_dir, db_path-1, …) back under another name; as NEW, `.` is the main directory
    #[arg(long = "map", value_name = "OLD=NEW", value_parser = parse_map)]
    pub map: Vec<(String, String)>,
    #[command(flatten)]
    pub hooks: Hooks,
}

fn parse_map(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("write OLD=NEW".to_owned()),
    }
}

/// `snapshots`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe snapshots -r /backups/node
  stillframe snapshots --tag prod --json")]
pub struct Snapshots {
    #[command(flatten)]
    pub repo: RepoArgs,
    #[command(flatten)]
    pub labels: Labels,
}

/// `show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe show latest -r /backups/node
  stillframe show 5f0c --files")]
pub struct Show {
    /// latest, a name, or the beginning of an id; it must fit one backup only
    pub backup: String,
    #[command(flatten)]
    pub labels: Labels,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Also list the files
    #[arg(long)]
    pub files: bool,
}

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Every object that the backup needs is there
    Exists,
    /// …and its stored bytes are as they were written
    Hash,
    /// …and every chunk decrypts to its content
    Decrypt,
    /// …and what is restored from it is what its engine can open (SQLite: integrity_check; RocksDB: structure and sizes)
    Open,
}

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe verify -r /backups/node
  stillframe verify latest --name nightly --level open --staging /var/tmp
  stillframe verify --level hash --without-key -r /backups/node")]
pub struct Verify {
    /// latest, a name, or the beginning of an id; it must fit one backup only
    #[arg(default_value = "latest")]
    pub backup: String,
    #[command(flatten)]
    pub labels: Labels,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// How deep to look [default: decrypt, or hash without a key]
    #[arg(long, value_enum)]
    pub level: Option<Level>,
    /// For `hash`: every object of the repository is compared with its own hash, whatever backup it belongs to, and no passphrase is
    /// needed. That no pack is missing it cannot tell
    #[arg(long, conflicts_with_all = ["backup", "name", "tag", "staging"])]
    pub without_key: bool,
    /// For `open`: where to restore to for the check [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub staging: Option<PathBuf>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// `repo …`.
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make a new repository, encrypted with a passphrase unless told otherwise
    #[command(after_help = "\
Examples:
  stillframe repo init /backups/node
  stillframe repo init /backups/node --passphrase-file /etc/stillframe/passphrase")]
    Init {
        /// Where: /path or file:///path
        url: String,
        #[command(flatten)]
        passphrase: PassphraseArgs,
        /// Anybody who can read the files can read the backups
        #[arg(long)]
        no_encryption: bool,
    },
    /// Show what a repository is and how much it holds
    #[command(after_help = "\
Examples:
  stillframe repo info -r /backups/node")]
    Info {
        #[command(flatten)]
        repo: RepoArgs,
    },
}

/// `key …`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Let another passphrase open the repository
    #[command(after_help = "\
Examples:
  stillframe key add -r /backups/node --label 'the other operator'
  stillframe key add -r /backups/node --new-passphrase-file /etc/stillframe/second")]
    Add {
        #[command(flatten)]
        repo: RepoArgs,
        /// Read the new passphrase from the first line of this file; otherwise STILLFRAME_NEW_PASSPHRASE, otherwise asked for
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
        /// For whom or what it is
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Take a passphrase away; not the one that is given
    #[command(after_help = "\
Examples:
  stillframe key remove 5f0c -r /backups/node
Whoever copied the repository's keys before can read what is written until `stillframe key rotate`.")]
    Remove {
        /// The beginning of its id
        key: String,
        #[command(flatten)]
        repo: RepoArgs,
    },
    /// Write with new keys from now on, which nobody knows who copied the old ones
    #[command(after_help = "\
Examples:
  stillframe key rotate -r /backups/node
  stillframe key rotate -r /backups/node --remove-others
The passphrase stays, and so does what is written: it is not encrypted again. Where others have passphrases, --remove-others must say that they \
lose them; they can be added again.")]
    Rotate {
        #[command(flatten)]
        repo: RepoArgs,
        /// Remove the keys of other passphrases, which do not know the new keys
        #[arg(long)]
        remove_others: bool,
        /// For whom or what the new key is [default: as the one before]
        #[arg(long)]
        label: Option<String>,
    },
    /// List the keys (never the secrets)
    #[command(after_help = "\
Examples:
  stillframe key list -r /backups/node")]
    List {
        #[command(flatten)]
        repo: RepoArgs,
    },
}

/// `image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Capture a source into a directory that its engine can open
    #[command(after_help = "\
Examples:
  stillframe image create rocksdb:/var/lib/node/db --to /var/lib/node/image
  stillframe image create /var/lib/app/db.sqlite --to /mnt/copy/app --copy
An image on the file system of its source shares tables with it by hard links: never change owner, mode or bytes of its files, \
or use --copy.")]
    Create {
        /// rocksdb:DIR, leveldb:DIR, fjall:DIR, sqlite:FILE, files:DIR, or a path to be recognised
        source: OsString,
        /// Where to; must not exist, or be empty. The directory above it must be writable
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Make files of its own instead of hard links to the live tables
        #[arg(long)]
        copy: bool,
        #[command(flatten)]
        capture: CaptureArgs,
    },
    /// Check an image, or a restored database, without opening it
    #[command(after_help = "\
Examples:
  stillframe image validate /var/lib/node/image
  stillframe image validate /var/lib/node/restored --engine rocksdb")]
    Validate {
        /// The directory (for SQLite also the file)
        dir: PathBuf,
        /// The engine, where there is no snapshot.json and it cannot be recognised
        #[arg(long)]
        engine: Option<String>,
    },
}

/// `jobs`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  stillframe jobs
  stillframe jobs --limit 5 --json
  stillframe jobs show 12
  stillframe jobs cancel 12"
)]
pub struct Jobs {
    /// How many, newest first
    #[arg(long, default_value_t = 20, value_parser = whole(1..=u32::MAX), allow_negative_numbers = true)]
    pub limit: u32,
    /// One of them.
    #[command(subcommand)]
    pub command: Option<JobsCommand>,
}

/// `jobs …`.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Everything about one job
    #[command(after_help = "\
Examples:
  stillframe jobs show 12")]
    Show {
        /// Its number
        job: JobId,
    },
    /// Stop a job that another process runs, and wait until it has cleaned up
    #[command(after_help = "\
Examples:
  stillframe jobs cancel 12")]
    Cancel {
        /// Its number
        job: JobId,
    },
}

/// A writer whose acknowledged work can be checked.
#[derive(Debug, Args)]
pub struct DemoWriter {
    /// The arguments of the writer.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}
