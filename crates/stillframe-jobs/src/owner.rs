//! Who a job belongs to, and whether that process still lives.

use std::io;
use std::path::PathBuf;

use rustix::process::{Pid, test_kill_process};

/// A process, named so that no other one can be taken for it: a pid is used again, but not with the same start time in the
/// same boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Process id, in its own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22); none where `/proc` cannot be read.
    pub start_time: Option<u64>,
    /// The kernel's random id of this boot; none where `/proc` cannot be read.
    pub boot_id: Option<String>,
    /// The pid namespace (`/proc/self/ns/pid`): the same number in another container is another process.
    pub namespace: Option<String>,
}

/// Whether an owner still lives, as far as can be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It does.
    Alive,
    /// It does not: the pid is gone, belongs to a younger process, or the machine was started anew.
    Gone,
    /// Cannot be told: another pid namespace, another user's hidden process, no `/proc`.
    Unknown,
}

impl Owner {
    /// The calling process.
    pub fn this_process() -> Self {
        let pid = std::process::id();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
        Self {
            pid,
            start_time: stat_of(pid).ok().and_then(|stat| parse_stat(&stat)).map(|(_, start)| start),
            boot_id: boot_id.map(|id| id.trim().to_owned()),
            namespace: namespace.map(|link| link.to_string_lossy().into_owned()),
        }
    }

    /// Whether this owner lives, seen from the process `viewer`.
    pub fn liveness(&self, viewer: &Self) -> Liveness {
        if let (Some(theirs), Some(ours)) = (&self.boot_id, &viewer.boot_id)
            && theirs != ours
        {
            return Liveness::Gone;
        }
        if viewer.start_time.is_none() || self.namespace != viewer.namespace {
            return Liveness::Unknown;
        }
        let Ok(stat) = stat_of(self.pid) else { return liveness_without_proc(self.pid) };
        match parse_stat(&stat) {
            // A zombie holds its number until its parent asks for it, and does nothing any more.
            Some(('Z' | 'X' | 'x', _)) => Liveness::Gone,
            Some((_, since)) if self.start_time.is_some_and(|ours| ours != since) => Liveness::Gone,
            Some(_) if self.start_time.is_some() => Liveness::Alive,
            _ => Liveness::Unknown,
        }
    }
}

/// `/proc` may be mounted so that other users' processes do not show: then only a signal tells whether one is there.
fn liveness_without_proc(pid: u32) -> Liveness {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match pid.map(test_kill_process) {
        Some(Err(rustix::io::Errno::SRCH)) | None => Liveness::Gone,
        Some(_) => Liveness::Unknown,
    }
}

fn stat_of(pid: u32) -> io::Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// State and start time out of `/proc/<pid>/stat`. The second field is the program's name in parentheses and may itself
/// contain anything, so the fields are counted from the last closing one.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is field 3, the start time is field 22.
    let since = fields.nth(22 - 4)?.parse().ok()?;
    Some((state, since))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// The owner that a child of ours is.
    fn owner_of(pid: u32) -> Owner {
        let start_time = parse_stat(&stat_of(pid).unwrap()).map(|(_, start)| start);
        assert!(start_time.is_some());
        Owner { pid, start_time, ..Owner::this_process() }
    }

    #[test]
    fn a_process_lives_until_it_is_killed_and_is_gone_even_as_a_zombie() {
        let viewer = Owner::this_process();
        assert_eq!(viewer.liveness(&viewer), Liveness::Alive);
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let owner = owner_of(child.id());
        assert_eq!(owner.liveness(&viewer), Liveness::Alive);
        child.kill().unwrap();
        // Not waited for: a zombie as soon as the signal has arrived.
        while !stat_of(child.id()).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert_eq!(owner.liveness(&viewer), Liveness::Gone);
        child.wait().unwrap();
        assert_eq!(owner.liveness(&viewer), Liveness::Gone);
    }

    #[test]
    fn the_same_pid_with_another_start_or_boot_is_another_process() {
        let viewer = Owner::this_process();
        let later = Owner { start_time: viewer.start_time.map(|t| t - 1), ..viewer.clone() };
        assert_eq!(later.liveness(&viewer), Liveness::Gone);
        let before_reboot = Owner { boot_id: Some("another".into()), ..viewer.clone() };
        assert_eq!(before_reboot.liveness(&viewer), Liveness::Gone);
        let elsewhere = Owner { namespace: Some("pid:[1]".into()), ..viewer.clone() };
        assert_eq!(elsewhere.liveness(&viewer), Liveness::Unknown);
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC*") {
            let _ = parse_stat(&text);
        }
    }
}
