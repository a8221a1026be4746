//! Which object is called what.

use std::fmt;

use stillframe_storage::object_store::path::Path;

use crate::ObjectId;

/// The object that makes a place a repository.
pub const CONFIG_OBJECT: &str = "stillframe.json";

/// What a framed object is. The number is in its header, the name in its path and in the derivation of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Keys = 1,
    Pack = 2,
    Index = 3,
    Manifest = 4,
    Sealed = 5,
    Mark = 6,
    Lease = 7,
    Pin = 8,
    Verified = 9,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Keys,
        Self::Pack,
        Self::Index,
        Self::Manifest,
        Self::Sealed,
        Self::Mark,
        Self::Lease,
        Self::Pin,
        Self::Verified,
    ];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// The directory that holds the objects of this kind.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Pack => "packs",
            Self::Index => "index",
            Self::Manifest => "manifests",
            Self::Sealed => "sealed",
            Self::Mark => "marks",
            Self::Lease => "leases",
            Self::Pin => "pins",
            Self::Verified => "verified",
        }
    }

    /// The name in key derivation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Pack => "pack",
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Sealed => "sealed",
            Self::Mark => "mark",
            Self::Lease => "lease",
            Self::Pin => "pin",
            Self::Verified => "verified",
        }
    }

    /// No object of this kind is larger: a reader refuses it before it reads it.
    pub(crate) fn max_len(self) -> u64 {
        match self {
            Self::Keys | Self::Sealed | Self::Pin | Self::Verified => 64 << 10,
            Self::Lease => 4 << 20,
            Self::Index | Self::Manifest => 16 << 20,
            Self::Mark => 64 << 20,
            Self::Pack => 256 << 20,
        }
    }
}

/// What can stand at the top of a repository's place: [`CONFIG_OBJECT`] and the directories of its other objects.
pub fn top_level_names() -> impl Iterator<Item = &'static str> {
    std::iter::once(CONFIG_OBJECT).chain(Kind::ALL.into_iter().map(Kind::directory))
}

/// One object of ours; displays as its path in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName {
    pub(crate) kind: Kind,
    pub(crate) id: ObjectId,
}

impl ObjectName {
    pub(crate) fn new(kind: Kind, id: ObjectId) -> Self {
        Self { kind, id }
    }

    pub(crate) fn path(self) -> Path {
        Path::from(self.to_string())
    }

    /// Reads a path below the directory of `kind` back. `None`: not a name that we give.
    pub(crate) fn from_path(kind: Kind, path: &Path) -> Option<Self> {
        let id: ObjectId = path.filename()?.parse().ok()?;
        let name = Self { kind, id };
        (name.path() == *path).then_some(name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = self.kind.directory();
        match self.kind {
            Kind::Pack => write!(f, "{directory}/{:02x}/{}", self.id.0[0], self.id),
            _ => write!(f, "{directory}/{}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_foreign_ones_do_not() {
        for kind in Kind::ALL {
            let name = ObjectName::new(kind, ObjectId::random());
            assert_eq!(ObjectName::from_path(kind, &name.path()), Some(name));
            assert_eq!(Kind::from_number(kind as u8), Some(kind));
        }
        let id = ObjectId::random();
        assert_eq!(ObjectName::from_path(Kind::Pack, &Path::from(format!("packs/{id}"))), None);
        assert_eq!(ObjectName::from_path(Kind::Index, &Path::from(format!("index/x/{id}"))), None);
        assert_eq!(ObjectName::from_path(Kind::Index, &Path::from("index/README")), None);
    }
}
