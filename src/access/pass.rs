//! Passes: what a caller presents, for one repository, after it has shown its login of the registry
//! that the repository is mirrored from. They end with the process, as the logins do.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::mint::Issued;
use super::token::seconds;
use crate::clock::Clock;
use crate::mirror::CallerId;
use crate::oci::Repository;

/// A client that pulls for longer fetches another one.
const LIFETIME: Duration = Duration::from_secs(300);
/// No token of another kind begins so.
const PREFIX: &str = "forebay-pass.";
/// A repository's name, an identity, a time.
const PASS_MAX: usize = 1024;

/// Makes passes and knows its own.
pub struct Passes {
    key: hmac::Key,
    clock: Clock,
}

/// What a pass says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Canonical, so that the registry is part of it.
    pub repository: String,
    /// None: nobody who has shown a login.
    pub caller: Option<CallerId>,
}

impl Passes {
    pub fn new(clock: Clock) -> Self {
        let secret: [u8; 32] = rand::random();
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), clock }
    }

    /// `repository`: None for a pass that says nothing, for who asks for no repository.
    pub fn issue(&self, repository: Option<&Repository>, caller: Option<CallerId>) -> Issued {
        let now = self.clock.wall();
        let caller = caller.map_or_else(|| "-".to_owned(), |id| format!("{:016x}", id.number()));
        let repository = repository.map(Repository::to_string).unwrap_or_default();
        let said = format!("{} {caller} {repository}", seconds(now) + LIFETIME.as_secs());
        let tag = hmac::sign(&self.key, said.as_bytes());
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let token = format!("{PREFIX}{}.{}", encode(said.as_bytes()), encode(tag.as_ref()));
        Issued { token, lifetime: LIFETIME, at: now }
    }

    /// What the pass says, while it is good.
    pub fn open(&self, token: &str) -> Result<Pass, &'static str> {
        let foreign = "the pass was not issued by this process: log in again";
        let (said, tag) = token
            .strip_prefix(PREFIX)
            .filter(|rest| rest.len() <= PASS_MAX)
            .and_then(|rest| rest.split_once('.'))
            .ok_or(foreign)?;
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| foreign);
        let (said, tag) = (decode(said)?, decode(tag)?);
        hmac::verify(&self.key, &said, &tag).map_err(|_| foreign)?;
        let said = String::from_utf8(said).map_err(|_| foreign)?;
        let mut parts = said.splitn(3, ' ');
        let (Some(end), Some(caller), Some(repository)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(foreign);
        };
        if end.parse::<u64>().map_err(|_| foreign)? <= seconds(self.clock.wall()) {
            return Err("the pass has expired: log in again");
        }
        let caller = match caller {
            "-" => None,
            number => Some(CallerId::from_number(u64::from_str_radix(number, 16).map_err(|_| foreign)?)),
        };
        Ok(Pass { repository: repository.to_owned(), caller })
    }
}

/// The pass in an `Authorization` header. None: it holds none.
pub fn pass_of(authorization: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(authorization).ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && token.starts_with(PREFIX)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Owner;
    use proptest::prelude::*;

    fn repository(name: &str) -> Repository {
        Repository { owner: Owner::Upstream("ghcr.io".parse().unwrap()), name: name.parse().unwrap() }
    }

    #[test]
    fn a_pass_says_who_may_what_until_it_ends() {
        let clock = Clock::default();
        let passes = Passes::new(clock.clone());
        let caller = Some(CallerId::from_number(7));
        let token = passes.issue(Some(&repository("org/app")), caller).token;
        let expected = Pass { repository: "ghcr.io/org/app".to_owned(), caller };
        assert_eq!(passes.open(&token), Ok(expected));
        let nobody = passes.issue(None, None).token;
        assert_eq!(passes.open(&nobody), Ok(Pass { repository: String::new(), caller: None }));
        clock.advance(LIFETIME - Duration::from_secs(2));
        assert!(passes.open(&token).is_ok());
        clock.advance(Duration::from_secs(2));
        assert!(passes.open(&token).unwrap_err().contains("expired"));
        let another = Passes::new(Clock::default());
        assert!(another.open(&passes.issue(None, None).token).unwrap_err().contains("this process"));
    }

    #[test]
    fn a_pass_is_told_from_other_tokens() {
        let passes = Passes::new(Clock::default());
        let header = format!("bearer {}", passes.issue(None, None).token);
        assert!(passes.open(pass_of(header.as_bytes()).unwrap()).is_ok());
        for other in ["", "Bearer", "Bearer eyJ.a.b", "Basic forebay-pass.x", "Bearer \u{e9}"] {
            assert_eq!(pass_of(other.as_bytes()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_pass_is_none(at in 0usize..90, to in "[A-Za-z0-9._-]") {
            let passes = Passes::new(Clock::default());
            let token = passes.issue(Some(&repository("a")), Some(CallerId::from_number(1))).token;
            let mut changed = token.clone();
            let at = at % token.len();
            changed.replace_range(at..=at, &to);
            // The last character of a tag has bits that say nothing; what is decoded is compared.
            prop_assert!(changed == token || passes.open(&changed).is_err());
        }

        #[test]
        fn no_text_panics(text in "(forebay-pass\\.)?[ -~]{0,80}") {
            prop_assert!(Passes::new(Clock::default()).open(&text).is_err());
        }
    }
}
