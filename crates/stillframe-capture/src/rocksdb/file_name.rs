//! The names of an engine's files (`file/filename.cc`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a name says of its file. Numbers come from one sequence for all kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileName {
    Manifest(u64),
    Options(u64),
    Table(u64),
    Blob(u64),
    Log(u64),
}

impl FileName {
    /// Recognises a name; `None`: of no interest to a capture. Numbers have at least six digits as the engines write them,
    /// but any width is read, as the engines do.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        if let Some(digits) = name.strip_prefix(b"MANIFEST-") {
            return number(digits).map(Self::Manifest);
        }
        if let Some(digits) = name.strip_prefix(b"OPTIONS-") {
            return number(digits).map(Self::Options);
        }
        let dot = name.iter().position(|&byte| byte == b'.')?;
        let (digits, ending) = name.split_at(dot);
        let number = number(digits)?;
        match ending {
            b".sst" | b".ldb" => Some(Self::Table(number)),
            b".blob" => Some(Self::Blob(number)),
            b".log" => Some(Self::Log(number)),
            _ => None,
        }
    }
}

/// The OPTIONS file that counts, of these names: the newest.
pub(crate) fn newest_options<N: AsRef<OsStr>>(names: impl IntoIterator<Item = N>) -> Option<N> {
    let numbered = names.into_iter().filter_map(|name| match FileName::parse(name.as_ref().as_bytes()) {
        Some(FileName::Options(number)) => Some((number, name)),
        _ => None,
    });
    // Of the same number in other digits, the name that sorts last.
    let newest = numbered.max_by(|(a, one), (b, two)| (a, one.as_ref()).cmp(&(b, two.as_ref())));
    newest.map(|(_, name)| name)
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `MANIFEST-N` from the content of CURRENT: a name and a newline, nothing else.
pub(crate) fn manifest_named_by(current: &[u8]) -> Option<&str> {
    let name = current.strip_suffix(b"\n")?;
    match FileName::parse(name) {
        Some(FileName::Manifest(_)) => std::str::from_utf8(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_any_width_are_read_and_others_are_not() {
        assert_eq!(FileName::parse(b"000012.sst"), Some(FileName::Table(12)));
        assert_eq!(FileName::parse(b"12.ldb"), Some(FileName::Table(12)));
        assert_eq!(FileName::parse(b"18446744073709551615.log"), Some(FileName::Log(u64::MAX)));
        assert_eq!(FileName::parse(b"000007.blob"), Some(FileName::Blob(7)));
        assert_eq!(FileName::parse(b"MANIFEST-000005"), Some(FileName::Manifest(5)));
        assert_eq!(FileName::parse(b"OPTIONS-000005"), Some(FileName::Options(5)));
        for other in [
            "OPTIONS-000005.dbtmp",
            "000012.sst.trash",
            "18446744073709551616.log",
            "+1.log",
            ".sst",
            "LOG",
            "x.sst",
        ] {
            assert_eq!(FileName::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn current_must_end_with_a_newline_and_name_a_manifest() {
        assert_eq!(manifest_named_by(b"MANIFEST-000005\n"), Some("MANIFEST-000005"));
        for bad in
            ["MANIFEST-000005", "MANIFEST-\n", "../MANIFEST-000005\n", "MANIFEST-1\n\n", "", "000005.sst\n"]
        {
            assert_eq!(manifest_named_by(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_names_never_panic(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = FileName::parse(&name);
            let _ = manifest_named_by(&name);
        }
    }
}
