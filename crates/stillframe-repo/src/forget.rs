//! Forgetting a backup: what it needed is garbage from then on, unless another backup needs it too.

use std::collections::BTreeSet;

use stillframe_storage::failpoint;

use crate::claim::Claim;
use crate::envelope::{HASH_LEN, seal_object};
use crate::error::{Error, Result};
use crate::layout::{Kind, ObjectName};
use crate::{BackupId, Manifest, Repository};

impl Repository {
    /// Takes away the seal and then the manifest, so that no sealed backup is ever without its manifest. Also what is not sealed. One that is gone already
    /// is as good as forgotten; one that is pinned is refused. No room comes back before [`Self::prune`].
    pub async fn forget(&self, id: BackupId) -> Result<()> {
        if self.is_pinned(id).await? {
            return Err(Error::Pinned { backup: id });
        }
        // Killed between the two, this would leave a manifest that nobody means any more: the next run of this machine takes it away.
        let claim = Claim::new(self.state(), id);
        let is_gone = self.take_away(id).await?;
        claim.settle();
        if !is_gone {
            return Err(Error::Pinned { backup: id });
        }
        self.io().delete(ObjectName::new(Kind::Verified, id)).await
    }

    /// The seal, if there is one, and then the manifest. `false`: somebody pinned it who had found the seal, and was told that it stays; then it is
    /// sealed again. Also what was never finished is taken back so: its seal may have been there without the writer's knowing.
    pub(crate) async fn take_away(&self, id: BackupId) -> Result<bool> {
        self.io().delete(ObjectName::new(Kind::Sealed, id)).await?;
        failpoint("forget::unsealed");
        // Whoever pins puts the pin before looking for the seal: one that found the seal shows here.
        if self.is_pinned(id).await? {
            self.seal_again(id).await?;
            return Ok(false);
        }
        self.io().delete(ObjectName::new(Kind::Manifest, id)).await?;
        failpoint("forget::forgotten");
        Ok(true)
    }

    /// Writes the seal anew of a backup whose manifest can be read and whose seal cannot, or seals another one. `false`: that is not what is
    /// wrong with it. A manifest without any seal is not sealed: nobody said that it is a backup.
    pub async fn reseal(&self, id: BackupId, dry_run: bool) -> Result<bool> {
        let is_unreadable = self.manifest(id).await.is_err_and(|error| error.is_unreadable());
        if !is_unreadable || !self.is_sealed(id).await? {
            return Ok(false);
        }
        let bytes = self.io().get(ObjectName::new(Kind::Manifest, id)).await?;
        if Manifest::decode(self.ring(), id, &bytes).is_err() {
            return Ok(false);
        }
        if !dry_run {
            self.seal_again(id).await?;
        }
        Ok(true)
    }

    /// The seal of a manifest that is there.
    async fn seal_again(&self, id: BackupId) -> Result<()> {
        let bytes = match self.io().get(ObjectName::new(Kind::Manifest, id)).await {
            Err(error) if error.is_absent() => return Ok(()),
            bytes => bytes?,
        };
        let Some(hash) = bytes.last_chunk::<HASH_LEN>() else { return Ok(()) };
        let name = ObjectName::new(Kind::Sealed, id);
        self.io().put(name, seal_object(self.ring(), name, hash.to_vec()).0).await
    }

    /// Removes what was said of backups that are gone: somebody died between two steps.
    pub(crate) async fn tidy_notes(&self) -> Result<()> {
        let mut notes = Vec::new();
        for kind in [Kind::Pin, Kind::Verified] {
            notes.extend(self.io().list(kind).await?.into_iter().map(|listed| (kind, listed.id)));
        }
        if notes.is_empty() {
            return Ok(());
        }
        // After them: a pin is put before its seal is looked for, and a seal after its manifest.
        let mut backups = BTreeSet::new();
        for kind in [Kind::Sealed, Kind::Manifest] {
            backups.extend(self.io().list(kind).await?.into_iter().map(|listed| listed.id));
        }
        for (kind, id) in notes.into_iter().filter(|(_, id)| !backups.contains(id)) {
            self.io().delete(ObjectName::new(kind, id)).await?;
        }
        Ok(())
    }
}
