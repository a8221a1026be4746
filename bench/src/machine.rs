//! What the run ran on.

use std::path::Path;
use std::process::{Command, ExitCode};

use stillframe_storage::Clock;

use crate::disk_rate::synced_rate;
use crate::error::BenchError;
use crate::measurement::call;
use crate::part::Part;
use crate::tools;
use crate::workshop::Workshop;

/// Machine, date, versions, and how busy it was.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The day, UTC.
    pub(crate) date: String,
    /// Of the working tree.
    pub(crate) commit: String,
    /// Processors, memory, kernel.
    pub(crate) hardware: String,
    /// Bytes per second that the disk takes durably.
    pub(crate) synced_rate: f64,
    /// One a tool.
    pub(crate) versions: Vec<String>,
    /// Load averages of a minute: before each part, and at the end.
    pub(crate) loads: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks at the machine and asks each tool for its version.
    pub(crate) fn look(workshop: &Workshop) -> Result<Self, BenchError> {
        let mut versions = Vec::new();
        for tool in tools::chosen(workshop)? {
            versions.push(tool.version()?);
        }
        versions.dedup();
        let java = call(Command::new("java").arg("--version"))?;
        versions.push(format!(
            "rocksdbjni {} on {}",
            crate::rocks_data::RELEASE,
            java.lines().next().unwrap_or_default()
        ));
        Ok(Self {
            date: workshop.clock.now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            commit: commit(workshop),
            hardware: hardware()?,
            synced_rate: synced_rate(workshop)?,
            versions,
            loads: Vec::new(),
        })
    }

    /// Notes how busy the machine is before a part begins.
    pub(crate) fn note_load(&mut self, part: Part) -> Result<(), BenchError> {
        self.loads.push((part.title(), load()?));
        Ok(())
    }

    /// Notes how busy the machine is at the end.
    pub(crate) fn note_end(&mut self) -> Result<(), BenchError> {
        self.loads.push(("end", load()?));
        Ok(())
    }
}

/// What is measured is built from it, or the table says the wrong thing.
fn commit(workshop: &Workshop) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(workshop.bench()).args(["describe", "--always", "--dirty", "--exclude", "*"]);
    call(&mut git).map_or_else(|_| "unknown".to_owned(), |said| said.trim().to_owned())
}

/// Uses most of the memory that is free, once. A virtual machine gets it page by page on first touch, which would be counted as
/// processor time of whatever tool runs first. In a process of its own, so that it is no child's peak.
pub(crate) fn touch_memory() -> Result<(), BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding", Path::new("this program")))?;
    call(Command::new(own).arg(TOUCH)).map(drop)
}

/// The process that does so.
pub(crate) const TOUCH: &str = "--touch-memory";

/// What it does.
pub(crate) fn run_touch() -> ExitCode {
    let available = line_of("/proc/meminfo", "MemAvailable").ok();
    let kibibytes: usize =
        available.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let touched: Vec<Vec<u8>> = (0..kibibytes / 10 * 8 / 1024).map(|_| vec![1; 1 << 20]).collect();
    std::hint::black_box(&touched);
    ExitCode::SUCCESS
}

fn hardware() -> Result<String, BenchError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = line_of("/proc/cpuinfo", "model name")?;
    let memory = line_of("/proc/meminfo", "MemTotal")?;
    let kibibytes: u64 = memory.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease")?;
    Ok(format!("{cores} × {model}, {} GiB of memory, Linux {}", kibibytes >> 20, kernel.trim()))
}

fn load() -> Result<String, BenchError> {
    Ok(read("/proc/loadavg")?.split_whitespace().next().unwrap_or("?").to_owned())
}

/// The value after `name :` in a file of such lines.
fn line_of(path: &str, name: &str) -> Result<String, BenchError> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.map_or("?", |rest| rest.trim_start_matches([' ', '\t', ':'])).to_owned())
}

fn read(path: &str) -> Result<String, BenchError> {
    std::fs::read_to_string(path).map_err(BenchError::io("reading", Path::new(path)))
}
