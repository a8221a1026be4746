//! What a live database's own writer feels while a backup runs beside it.
//!
//! The writer keeps to a schedule at half of its best ([`OpenLoop`]). In each round it has one turn alone and one beside each tool, which
//! begins a little after it and makes one full backup after the other until the turn is over: a second backup into the same repository
//! would find its work done and leave the machine alone. What counts is the ratio of a turn to the turn alone of the same round, because
//! from round to round a machine and a database change more than a polite backup changes them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use stillframe_storage::Clock;
use stillframe_testkit::{Process, ProcessError};

use crate::comparison::settle;
use crate::error::BenchError;
use crate::measurement::{call, failed};
use crate::open_loop::{Felt, OpenLoop};
use crate::source::Source;
use crate::statistics::median;
use crate::tool_name::ToolName;
use crate::tools::{self, Pace, Stillframe, Tool};
use crate::tree::bytes_below;
use crate::workshop::{Workshop, say};

const GIB: u64 = 1 << 30;

/// So many rounds a verdict wants: a writer's slowest puts differ from turn to turn even when it is alone.
pub(crate) const ROUNDS: u32 = 9;

/// The writer is alone for so long at the beginning of each turn, and what it feels meanwhile does not count: its virtual machine
/// compiles what it runs.
const LEAD: Duration = Duration::from_secs(2);

/// How long a turn is after that.
pub(crate) const TURN: Duration = Duration::from_secs(15);

/// What a tool may take to end when it is told to.
const GIVING_UP: Duration = Duration::from_secs(30);

/// One turn of the writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Who backed up meanwhile.
    pub(crate) beside: Option<ToolName>,
    /// What the writer felt.
    pub(crate) felt: Felt,
    /// What was backed up.
    pub(crate) load: Load,
}

/// What a tool got done in one turn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Backups that were made from start to end.
    pub(crate) backups: u32,
    /// Bytes in the repositories, also of the backup that the end of the turn cut off.
    pub(crate) stored: u64,
}

/// All turns.
#[derive(Debug)]
pub(crate) struct Foreground {
    /// Bytes of the database before the first turn.
    pub(crate) bytes: u64,
    /// Puts a second that the writer can do.
    pub(crate) best: f64,
    /// Puts a second that were due.
    pub(crate) rate: u64,
    /// The turns of each round, in the order in which they were taken.
    pub(crate) rounds: Vec<Vec<Turn>>,
}

impl Foreground {
    /// The median over the rounds of something about the turns beside a tool.
    pub(crate) fn middle(&self, beside: Option<ToolName>, of: impl Fn(&Turn) -> f64) -> f64 {
        median(self.rounds.iter().filter_map(|round| turn_beside(round, beside)).map(of))
    }

    /// Round by round, how many times as much it was beside the tool as it was alone.
    pub(crate) fn ratios(&self, beside: ToolName, of: impl Fn(&Felt) -> f64) -> Vec<f64> {
        let ratio = |round: &Vec<Turn>| {
            let (beside, alone) = (turn_beside(round, Some(beside))?, turn_beside(round, None)?);
            Some(of(&beside.felt) / of(&alone.felt))
        };
        self.rounds.iter().filter_map(ratio).collect()
    }

    /// Beside whom the writer was, in the order of the table.
    pub(crate) fn company(&self) -> Vec<Option<ToolName>> {
        let mut company: Vec<_> = self.rounds.iter().flatten().map(|turn| turn.beside).collect();
        company.sort_unstable();
        company.dedup();
        company
    }
}

fn turn_beside(round: &[Turn], beside: Option<ToolName>) -> Option<&Turn> {
    round.iter().find(|turn| turn.beside == beside)
}

/// Makes the database, finds out what its writer can do, and lets the tools take turns beside it.
pub(crate) fn run(workshop: &Workshop) -> Result<Foreground, BenchError> {
    let tools = tools::chosen(workshop)?.into_iter().filter(|tool| takes_part(tool.name()));
    let turns: Vec<Option<Box<dyn Tool>>> = std::iter::once(None).chain(tools.map(Some)).collect();
    let root = workshop.empty_dir("foreground")?;
    let mut stage =
        Stage { workshop, writer: OpenLoop::fill(workshop, root.join("db"), workshop.scaled(GIB))?, root };
    let best = stage.writer.best()?;
    let rate = half(best);
    say(&format!("   best: {best:.0} puts/s"));
    let bytes = bytes_below(&stage.writer.db)?;
    let mut rounds = Vec::new();
    for number in 1..=workshop.foreground_rounds {
        let mut round = Vec::new();
        for at in order(turns.len(), number) {
            let tool = turns.get(at).and_then(Option::as_deref);
            let turn = stage.turn(tool, rate)?;
            say(&format!(
                "   round {number}  {:<20} {:>8.0} puts/s  p99.9 {:>8.2} ms  {:>6} MiB stored",
                title(turn.beside),
                turn.felt.throughput,
                turn.felt.p999 * 1e3,
                turn.load.stored >> 20,
            ));
            round.push(turn);
        }
        rounds.push(round);
    }
    workshop.remove(&stage.root)?;
    Ok(Foreground { bytes, best, rate, rounds })
}

/// In which order the turns are taken in a round: whoever comes first meets another disk than who comes last, as in the other parts, and
/// back and forth, so that the writer is not always alone right after the same tool, with what that one has left to the disk.
fn order(turns: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..turns).collect();
    order.rotate_left(round as usize % turns.max(1));
    if round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// `cp -a` is no backup, and `ldb` wants the database for itself.
fn takes_part(tool: ToolName) -> bool {
    matches!(tool, ToolName::Stillframe | ToolName::Polite | ToolName::Restic | ToolName::Rustic)
}

/// What the table calls a turn.
pub(crate) fn title(beside: Option<ToolName>) -> &'static str {
    beside.map_or("nobody", ToolName::title)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of puts")]
fn half(best: f64) -> u64 {
    (best / 2.0).max(1.0) as u64
}

/// The database, its writer, and the directory in which both are.
struct Stage<'a> {
    workshop: &'a Workshop,
    writer: OpenLoop,
    root: PathBuf,
}

impl Stage<'_> {
    fn turn(&mut self, tool: Option<&dyn Tool>, rate: u64) -> Result<Turn, BenchError> {
        let (shops, image) = (self.root.join("shops"), self.root.join("image"));
        let empty = shops.join("empty");
        std::fs::create_dir_all(&empty).map_err(BenchError::io("making", &empty))?;
        let mut source = Source::RocksDb(self.writer.db.clone());
        if let Some(tool) = tool {
            tool.prepare(&empty)?;
            if !matches!(tool.name(), ToolName::Stillframe | ToolName::Polite) {
                // The others know no live database.
                self.make_image(&source, &image)?;
                source = Source::Files(image.clone());
            }
        }
        settle(source.path())?;
        let writing = self.writer.start(rate, LEAD, TURN)?;
        let begun = self.workshop.clock.monotonic();
        std::thread::sleep(LEAD);
        let load = match tool {
            Some(tool) => self.keep_busy(tool, &source, &shops, begun + LEAD + TURN)?,
            None => Load::default(),
        };
        let felt = writing.finish()?;
        self.workshop.remove(&shops)?;
        self.workshop.remove(&image)?;
        Ok(Turn { beside: tool.map(Tool::name), felt, load })
    }

    fn make_image(&self, source: &Source, to: &Path) -> Result<(), BenchError> {
        let program = Stillframe::new(&self.workshop.stillframe, Pace::Fast);
        let mut command = program.command(&self.root);
        call(command.args(["image", "create", &source.url(), "--to"]).arg(to)).map(drop)
    }

    /// Backs up again and again until the time is over, each time into a copy of the empty repository: making a new one takes all of a
    /// processor to harden a passphrase, whatever the tool, and nobody does that every time.
    fn keep_busy(
        &self,
        tool: &dyn Tool,
        source: &Source,
        shops: &Path,
        until: Duration,
    ) -> Result<Load, BenchError> {
        let empty = shops.join("empty");
        let mut used = Vec::new();
        loop {
            let shop = shops.join(used.len().to_string());
            call(Command::new("cp").arg("-a").arg(&empty).arg(&shop))?;
            let said = shop.join("said");
            let mut command = tool.backup(source, &shop);
            let output = File::create(&said).map_err(BenchError::io("making", &said))?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
            used.push(tools::repository(&shop));
            let left = until.saturating_sub(self.workshop.clock.monotonic());
            match run_for(&mut command, left)? {
                Some(status) if status.success() => {}
                Some(status) => {
                    let said = std::fs::read(&said).map_err(BenchError::io("reading", &said))?;
                    return Err(failed(&command, status.to_string(), &said));
                }
                None => break,
            }
        }
        let nothing = bytes_below(&tools::repository(&empty))?;
        let stored = used.iter().map(|path| Ok(bytes_below(path)?.saturating_sub(nothing)));
        Ok(Load {
            // The last one was cut off.
            backups: u32::try_from(used.len() - 1).unwrap_or(u32::MAX),
            stored: stored.sum::<Result<u64, BenchError>>()?,
        })
    }
}

/// How the program ended, or nothing if it was cut off.
fn run_for(command: &mut Command, at_most: Duration) -> Result<Option<ExitStatus>, BenchError> {
    let broken = |command: &Command, error: &ProcessError| failed(command, error.to_string(), b"");
    let mut process = Process::spawn(command).map_err(|error| broken(command, &error))?;
    match process.wait(at_most) {
        Ok(status) => Ok(Some(status)),
        Err(ProcessError::TooSlow { .. }) => {
            // Asked first, so that it removes what it keeps beside the database: that would keep old tables alive. Neither an end
            // just before nor one that takes too long matters any more; what does not end is killed here.
            let _ = process.interrupt();
            let _ = process.wait(GIVING_UP);
            Ok(None)
        }
        Err(error) => Err(broken(command, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(beside: Option<ToolName>, throughput: f64, p999: f64) -> Turn {
        let felt = Felt { throughput, p50: p999 / 10.0, p99: p999 / 2.0, p999, longest: p999 * 2.0 };
        Turn { beside, felt, load: Load::default() }
    }

    fn three_rounds() -> Foreground {
        let restic = Some(ToolName::Restic);
        let rounds = vec![
            vec![turn(None, 100.0, 0.001), turn(restic, 50.0, 0.004)],
            vec![turn(restic, 99.0, 0.1), turn(None, 100.0, 0.05)],
            vec![turn(restic, 80.0, 0.003), turn(None, 100.0, 0.001)],
        ];
        Foreground { bytes: 0, best: 200.0, rate: 100, rounds }
    }

    #[test]
    fn a_turn_is_compared_with_the_turn_alone_of_its_own_round() {
        let foreground = three_rounds();
        let ratio = |of: fn(&Felt) -> f64| median(foreground.ratios(ToolName::Restic, of));
        // The ratio of the medians would be 4.
        assert!((ratio(|felt| felt.p999) - 3.0).abs() < 1e-9);
        assert!((ratio(|felt| felt.throughput) - 0.8).abs() < 1e-9);
        assert!((foreground.middle(None, |turn| turn.felt.p999) - 0.001).abs() < 1e-9);
    }

    #[test]
    fn a_tool_that_had_no_turn_has_no_ratios() {
        assert!(three_rounds().ratios(ToolName::Rustic, |felt| felt.p999).is_empty());
        assert_eq!(three_rounds().company(), [None, Some(ToolName::Restic)]);
    }

    #[test]
    fn everybody_has_one_turn_a_round_and_not_always_after_the_same_one() {
        let rounds: Vec<_> = (1..=ROUNDS).map(|round| order(5, round)).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        // Nobody, who is the first of them, comes after either of the neighbours.
        for pair in [[4, 0], [1, 0]] {
            assert!(rounds.iter().any(|round| round.windows(2).any(|two| two == pair)), "{rounds:?}");
        }
        assert!(order(0, 1).is_empty());
    }

    #[test]
    fn half_of_the_best_is_asked_for() {
        assert_eq!(half(101.7), 50);
        assert_eq!(half(0.0), 1);
    }

    #[test]
    fn what_takes_too_long_is_cut_off_and_what_ends_says_how() {
        assert_eq!(run_for(Command::new("sleep").arg("60"), Duration::from_millis(20)).unwrap(), None);
        let ended = run_for(Command::new("sh").args(["-c", "exit 3"]), Duration::from_mins(1)).unwrap();
        assert_eq!(ended.and_then(|status| status.code()), Some(3));
        assert!(run_for(&mut Command::new("/is/not/there"), Duration::ZERO).is_err());
    }
}
