//! `key add` and `key list`.

use serde_json::json;

use stillframe_repo::PassphraseCost;

use crate::cli::KeyCommand;
use crate::failure::{Failure, Kind};
use crate::passphrase::{Question, obtain};
use crate::repository::{Opening, open_repository, passphrase};
use crate::session::Session;

/// Runs either.
pub async fn run(session: &Session, command: &KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Add { repo: args, new_passphrase_file, label } => {
            let opening = Opening::prepare(args).await?;
            let _uploads = opening.uploads();
            let repo = opening.open().await?;
            let question =
                Question { prompt: "New passphrase: ", variable: "STILLFRAME_NEW_PASSPHRASE", twice: true };
            let secret = obtain(new_passphrase_file.as_deref(), question)?.ok_or_else(|| {
                Failure::new(
                    Kind::Passphrase,
                    "no new passphrase: set STILLFRAME_NEW_PASSPHRASE or use --new-passphrase-file",
                )
            })?;
            let id = repo
                .add_key(passphrase(&secret), PassphraseCost::default(), label, session.clock.as_ref())
                .await?;
            session.console.line(format!("key {id} added"));
            session.console.object("key", json!({ "id": id.to_string(), "label": label }));
        }
        KeyCommand::List { repo: args } => {
            let repo = open_repository(args).await?;
            let mut damaged = None;
            for key in repo.keys().await? {
                let key = match key {
                    Ok(key) => key,
                    Err(error) => {
                        session.console.warn(error.to_string());
                        damaged = Some(error);
                        continue;
                    }
                };
                let created = key.created.strftime("%Y-%m-%d %H:%M:%SZ");
                let current = if key.current { "  (in use)" } else { "" };
                session.console.answer(format!("{}  {created}  {}{current}", key.id, key.label));
                session.console.object(
                    "key",
                    json!({ "id": key.id.to_string(), "label": key.label, "created": key.created, "current": key.current }),
                );
            }
            if let Some(error) = damaged {
                return Err(error.into());
            }
        }
    }
    Ok(())
}
