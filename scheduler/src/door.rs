//! How a browser gets in without ever seeing the token: a link that works once and leaves a cookie.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use scalable_tls::{Secret, TlsError};

/// Links that were made and not used yet.
const LINKS_MAX: usize = 16;
/// A link not used by then is void.
const LINK_LIFETIME: Duration = Duration::from_secs(600);
/// Browsers that are in; the oldest has to ask again when there is one more.
const COOKIES_MAX: usize = 64;

/// Links and cookies of one scheduler, in memory only.
#[derive(Clone, Default)]
pub struct Door(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    links: Vec<(Secret, Instant)>,
    cookies: Vec<Secret>,
}

impl Door {
    /// A new link's secret.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn make_link(&self) -> Result<String, TlsError> {
        let secret = Secret::random()?;
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inside.links.retain(|(_, made)| made.elapsed() < LINK_LIFETIME);
        if inside.links.len() == LINKS_MAX {
            inside.links.remove(0);
        }
        inside.links.push((secret.clone(), Instant::now()));
        Ok(secret.expose().to_owned())
    }

    /// Uses a link up; a cookie where it was a good one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn enter(&self, shown: &str) -> Result<Option<String>, TlsError> {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |(link, made): &(Secret, Instant)| made.elapsed() < LINK_LIFETIME && link.matches(shown);
        let Some(at) = inside.links.iter().position(good) else { return Ok(None) };
        let cookie = Secret::random()?;
        inside.links.remove(at);
        if inside.cookies.len() == COOKIES_MAX {
            inside.cookies.remove(0);
        }
        inside.cookies.push(cookie.clone());
        Ok(Some(cookie.expose().to_owned()))
    }

    /// True for a cookie that `enter` has given out.
    pub fn knows(&self, cookie: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cookies.iter().any(|known| known.matches(cookie))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_its_cookie_from_then_on() {
        let door = Door::default();
        let link = door.make_link().unwrap();
        assert_eq!(door.enter("something else").unwrap(), None);
        let cookie = door.enter(&link).unwrap().unwrap();
        assert_eq!(door.enter(&link).unwrap(), None, "used up");
        assert!(door.knows(&cookie) && !door.knows(&link) && !door.knows(""));
    }

    #[test]
    fn links_and_cookies_are_bounded() {
        let door = Door::default();
        let first = door.make_link().unwrap();
        for _ in 0..LINKS_MAX {
            door.make_link().unwrap();
        }
        assert_eq!(door.enter(&first).unwrap(), None, "the oldest of too many links is void");
        let link = door.make_link().unwrap();
        let oldest = door.enter(&link).unwrap().unwrap();
        for _ in 0..COOKIES_MAX {
            let link = door.make_link().unwrap();
            door.enter(&link).unwrap().unwrap();
        }
        assert!(!door.knows(&oldest));
    }
}
