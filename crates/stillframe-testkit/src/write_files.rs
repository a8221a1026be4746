//! A directory of generated files, for benchmarks.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::Content;
use crate::splitmix::mix_all;

const BUFFER: usize = 1 << 20;

/// Writes `count` files of `size` bytes into `dir` (made if it is not there), named `00000000.dat` and so on, 1000 to a directory
/// below it. Each has contents of its own with the part `noise` that cannot be compressed. Nothing is synced.
pub fn write_files(dir: &Path, count: u64, size: u64, seed: u64, noise: f64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    for number in 0..count {
        let path = dir.join(file_name(number));
        if number % 1000 == 0 {
            std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        }
        write_file(&path, size, Content::new(mix_all(&[seed, number]), noise), &mut buffer)?;
    }
    Ok(())
}

/// Writes one in every `one_in` files anew, with contents that were not there before if `round` was not: what an incremental backup finds
/// changed. Returns how many.
pub fn change_files(
    dir: &Path,
    count: u64,
    size: u64,
    seed: u64,
    noise: f64,
    one_in: u64,
    round: u64,
) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let chosen = (0..count).filter(|number| mix_all(&[seed, round, *number]).is_multiple_of(one_in.max(1)));
    let mut changed = 0;
    for number in chosen {
        let content = Content::new(mix_all(&[seed, number, round, 1]), noise);
        write_file(&dir.join(file_name(number)), size, content, &mut buffer)?;
        changed += 1;
    }
    Ok(changed)
}

fn file_name(number: u64) -> String {
    format!("{:05}/{number:08}.dat", number / 1000)
}

fn write_file(path: &Path, size: u64, content: Content, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut position = 0;
    while position < size {
        let length = usize::try_from(size - position).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let part = &mut buffer[..length];
        content.fill(position, part);
        file.write_all(part)?;
        position += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Detail, Inventory, tree_digest};

    #[test]
    fn the_same_seed_writes_the_same_files_and_a_change_touches_the_asked_part() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for place in [&one, &two] {
            write_files(place, 1200, 100, 7, 0.5).unwrap();
        }
        let digest = |place: &Path| tree_digest(place, Detail::Content).unwrap();
        assert_eq!(digest(&one), digest(&two));
        assert_eq!(std::fs::read_dir(&one).unwrap().count(), 2);

        let before = Inventory::of(&one).unwrap();
        let changed = change_files(&one, 1200, 100, 7, 0.5, 100, 1).unwrap();
        assert!((2..40).contains(&changed), "{changed} of 1200");
        assert_ne!(digest(&one), digest(&two));
        let after = Inventory::of(&one).unwrap();
        let touched: std::collections::BTreeSet<_> =
            after.changes_since(&before).into_iter().map(|change| change.path).collect();
        assert_eq!(touched.len() as u64, changed);
        let sizes = std::fs::read_dir(one.join("00000")).unwrap();
        assert!(sizes.into_iter().all(|entry| entry.unwrap().metadata().unwrap().len() == 100));
    }

    #[test]
    fn files_larger_than_the_buffer_have_the_asked_size_and_no_repetition() {
        let dir = tempfile::tempdir().unwrap();
        let size = (BUFFER * 2 + 12) as u64;
        write_files(dir.path(), 1, size, 1, 1.0).unwrap();
        let bytes = std::fs::read(dir.path().join(file_name(0))).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert_ne!(bytes[..BUFFER], bytes[BUFFER..2 * BUFFER]);
    }
}
