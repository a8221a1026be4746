//! What sources are called in a backup.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use stillframe_capture::Source;
use stillframe_storage::path_text;

/// A source and what it is called in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// Unique within one backup; a plain file name.
    pub name: String,
    /// What to capture.
    pub source: Source,
}

impl NamedSource {
    /// Each is called by the last part of its path, and as many before it as tell it from the others. Where whole paths do not, those that clash
    /// are numbered in the order of their paths. So no name depends on the order in which the sources are given. The error is a source that is
    /// given twice.
    pub fn name_all(sources: Vec<Source>) -> Result<Vec<Self>, Source> {
        let mut places = BTreeSet::new();
        for source in &sources {
            let place = std::fs::canonicalize(&source.path).unwrap_or_else(|_| source.path.clone());
            if !places.insert(place) {
                return Err(source.clone());
            }
        }
        let names = unique_names(&sources.iter().map(|source| source.path.as_path()).collect::<Vec<_>>());
        Ok(names.into_iter().zip(sources).map(|(name, source)| Self { name, source }).collect())
    }
}

fn unique_names(paths: &[&Path]) -> Vec<String> {
    let parts: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let names = path.components().filter(|part| matches!(part, Component::Normal(_)));
            names.map(path_text).collect()
        })
        .collect();
    let mut lengths = vec![1; parts.len()];
    loop {
        let names: Vec<String> = parts
            .iter()
            .zip(&lengths)
            .map(|(parts, length)| match parts.len().saturating_sub(*length) {
                _ if parts.is_empty() => "root".to_owned(),
                skipped => parts.get(skipped..).unwrap_or_default().join("-"),
            })
            .collect();
        let is_double = |name: &String| is_double(&names, name);
        if !names.iter().any(is_double) {
            return names;
        }
        let mut grown = false;
        for ((length, name), parts) in lengths.iter_mut().zip(&names).zip(&parts) {
            if is_double(name) && *length < parts.len() {
                *length += 1;
                grown = true;
            }
        }
        if !grown {
            return numbered(paths, &names);
        }
    }
}

fn is_double(names: &[String], name: &str) -> bool {
    names.iter().filter(|other| *other == name).count() > 1
}

/// `a-b/c` and `a/b-c` are both `a-b-c`: only a number is left to tell them apart, which may not make it the name of another one.
fn numbered(paths: &[&Path], names: &[String]) -> Vec<String> {
    let mut taken: BTreeSet<String> = names.iter().cloned().collect();
    let is_double = |name: &String| is_double(names, name);
    let mut clashing: Vec<(&Path, usize)> =
        paths.iter().copied().zip(0..).filter(|(_, at)| names.get(*at).is_some_and(is_double)).collect();
    clashing.sort_unstable();
    let mut numbered = names.to_vec();
    for (_, at) in clashing {
        let Some(name) = numbered.get_mut(at) else { continue };
        let free = (1..=2 * names.len()).map(|n| format!("{name}-{n}")).find(|name| !taken.contains(name));
        *name = free.expect("there are more numbers than names");
        taken.insert(name.clone());
    }
    numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_sources_apart_whatever_their_order() {
        let names = |paths: &[&str]| unique_names(&paths.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(names(&["/srv/a/db", "/srv/kv"]), ["db", "kv"]);
        assert_eq!(names(&["/srv/a/db", "/srv/b/db", "/srv/kv"]), ["a-db", "b-db", "kv"]);
        assert_eq!(names(&["/srv/b/db", "/srv/a/db", "/srv/kv"]), ["b-db", "a-db", "kv"]);
        assert_eq!(names(&["/x/a/db", "/y/a/db", "/db"]), ["x-a-db", "y-a-db", "db"]);
        assert_eq!(names(&["/"]), ["root"]);
    }

    #[test]
    fn names_that_only_a_number_tells_apart_are_the_same_in_every_order_and_leave_the_others_alone() {
        let paths = ["/a-b/c", "/a/b-c", "/c", "/b-c", "/kv", "/a-b-c-1"];
        // The number 1 would be the name of another one.
        let named = ["a-b-c-3", "a-b-c-2", "c", "b-c", "kv", "a-b-c-1"];
        for order in [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 5, 1, 4, 0, 2]] {
            let given: Vec<_> = order.iter().map(|at| Path::new(paths[*at])).collect();
            assert_eq!(unique_names(&given), order.map(|at| named[at]));
        }
    }
}
