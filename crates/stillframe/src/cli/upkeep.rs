//! What looks after a repository: `check`, `repair`, `forget`, `prune`, `pin`.

use clap::{Args, Subcommand};
use jiff::Span;
use stillframe_engine::Retention;

use super::{Hooks, Labels, PaceArgs, RepoArgs, whole};
use crate::sizes::Size;

/// `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe check -r /backups/node
  stillframe check -r /backups/node --read-data-subset 5%
  stillframe check -r /backups/node --read-data
Every object is looked at: keys, manifests, seals, marks, pins, the index, and what each pack says is in it; every chunk that a backup needs must \
be in a pack. Which backups lose something is noted, and counts for `stillframe forget`. Backups may run meanwhile.")]
pub struct Check {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Also read all packs, and decrypt every chunk in them
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// Also read so many of the packs, others each time
    #[arg(long, value_name = "PERCENT")]
    pub read_data_subset: Option<Share>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// A part of a whole, in ten thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u32);

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let help = || "write 0.01% to 100%, for example 5%".to_owned();
        let (whole, part) = text
            .strip_suffix('%')
            .ok_or_else(help)?
            .split_once('.')
            .unwrap_or((text.trim_end_matches('%'), ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 2 || !is_digits(whole) || !is_digits(part) {
            return Err(help());
        }
        let number: u32 = format!("{whole}{part:0<2}").parse().map_err(|_| help())?;
        (1..=10_000).contains(&number).then_some(Self(number)).ok_or_else(help)
    }
}

/// `repair …`.
#[derive(Debug, Subcommand)]
pub enum RepairCommand {
    /// Write the index anew from the packs
    #[command(after_help = "\
Examples:
  stillframe repair index -r /backups/node
The index is a hint: this costs time and loses nothing.")]
    Index {
        #[command(flatten)]
        repo: RepoArgs,
    },
    /// Make whole backups of what is left of damaged ones, and name what they lost
    Snapshots(RepairSnapshots),
}

/// `repair snapshots`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe repair snapshots -r /backups/node --dry-run
  stillframe repair snapshots 5f0c -r /backups/node
  stillframe repair snapshots -r /backups/node --forget
Packs that are missing or cut are seen at once; what is damaged inside of packs must have been seen by `stillframe check --read-data` or \
`stillframe verify` on this machine before. A repaired backup stands right behind the damaged one, which stays until --forget. A database of which \
tables are lost may not open.")]
pub struct RepairSnapshots {
    /// These: names, or beginnings of ids [default: all]
    #[arg(value_name = "BACKUP")]
    pub backups: Vec<String>,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Say what is lost and what would be left; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Forget the damaged ones of which a repaired one was written; of those that are named also where nothing is left
    #[arg(long, conflicts_with = "dry_run")]
    pub forget: bool,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// How many backups a rule may keep.
const KEPT: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// What a policy keeps.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// Keep the newest N
    #[arg(long = "keep-last", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub last: Option<u32>,
    /// Keep the newest of each of the newest N hours that have one (hours, days and all others are those of UTC)
    #[arg(long = "keep-hourly", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub hourly: Option<u32>,
    /// …of days
    #[arg(long = "keep-daily", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub daily: Option<u32>,
    /// …of weeks
    #[arg(long = "keep-weekly", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub weekly: Option<u32>,
    /// …of months
    #[arg(long = "keep-monthly", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub monthly: Option<u32>,
    /// …of years
    #[arg(long = "keep-yearly", value_name = "N", value_parser = whole(KEPT), allow_negative_numbers = true)]
    pub yearly: Option<u32>,
    /// Keep all that are older than the newest one by no more than this: 12h, 30d, 8w, 6mo, 1y
    #[arg(long = "keep-within", value_name = "SPAN", value_parser = parse_within)]
    pub within: Option<Span>,
}

impl From<&RetentionArgs> for Retention {
    fn from(args: &RetentionArgs) -> Self {
        Self {
            last: args.last.unwrap_or_default(),
            hourly: args.hourly.unwrap_or_default(),
            daily: args.daily.unwrap_or_default(),
            weekly: args.weekly.unwrap_or_default(),
            monthly: args.monthly.unwrap_or_default(),
            yearly: args.yearly.unwrap_or_default(),
            within: args.within,
        }
    }
}

/// Who writes `6m` means months, and would keep six minutes.
fn parse_within(text: &str) -> Result<Span, String> {
    let help = "write for example 12h, 30d, 8w, 6mo or 1y";
    let span: Span = text.parse().map_err(|_| help.to_owned())?;
    if span.get_minutes() != 0 {
        return Err(format!("m means minutes; months are written 6mo: {help}"));
    }
    if span.is_negative() || span.is_zero() {
        return Err(help.to_owned());
    }
    Ok(span)
}

/// `forget`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe forget -r /backups/node --keep-hourly 24 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  stillframe forget -r /backups/node --keep-hourly 24 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --prune
  stillframe forget 5f0c -r /backups/node
A policy is applied to each machine and set of sources by itself; --name or --tag without one means all that have it. Neither takes what is \
pinned, nor the last good backup of a source; one that is named goes unless it is pinned. Room comes back with --prune, or `stillframe prune`.")]
pub struct Forget {
    /// These: names, or beginnings of ids, each of which must fit one backup only
    #[arg(value_name = "BACKUP")]
    pub backups: Vec<String>,
    /// Only those with this name; without a policy, all of them
    #[arg(long, conflicts_with = "backups")]
    pub name: Option<String>,
    /// Only those with this tag; without a policy, all of them
    #[arg(long, conflicts_with = "backups")]
    pub tag: Option<String>,
    #[command(flatten)]
    pub repo: RepoArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// Say what would go and why the others stay; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give the room back at once, as `stillframe prune` does
    #[arg(long)]
    pub prune: bool,
    /// With --prune: send at most this many bytes per second (for example 20MiB)
    #[arg(long, value_name = "SIZE", requires = "prune", allow_negative_numbers = true)]
    pub limit_bandwidth: Option<Size>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// `prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe prune -r /backups/node --dry-run
  stillframe prune -r /backups/node --limit-bandwidth 20MiB
Backups, restores and other prunings may run meanwhile, on any machine. One that is stopped has lost nothing; the next one goes on.")]
pub struct Prune {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Say what would be deleted and moved; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Send at most this many bytes per second (for example 20MiB)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub limit_bandwidth: Option<Size>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub hooks: Hooks,
}

/// `pin`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe pin latest -r /backups/node --why 'before the upgrade'")]
pub struct Pin {
    /// latest, a name, or the beginning of an id; it must fit one backup only
    pub backup: String,
    #[command(flatten)]
    pub labels: Labels,
    #[command(flatten)]
    pub repo: RepoArgs,
    /// What it is kept for
    #[arg(long, default_value = "", hide_default_value = true)]
    pub why: String,
}

/// `unpin`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillframe unpin 5f0c -r /backups/node")]
pub struct Unpin {
    /// latest, a name, or the beginning of an id; it must fit one backup only
    pub backup: String,
    #[command(flatten)]
    pub labels: Labels,
    #[command(flatten)]
    pub repo: RepoArgs,
}
