//! The list of tags, page by page.

use std::collections::HashSet;

use http::header::LINK;
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;

use super::round::{First, Turn};
use super::{Cause, Error, Identity, Upstream};
use crate::metrics::UpstreamCall;
use crate::oci::{Name, Tag};

const MAX_PAGES: usize = 50;
const MAX_TAGS: usize = 100_000;
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Tags asked for at once. Some registries refuse more.
const PAGE: &str = "n=1000";

#[derive(Deserialize)]
struct Page {
    /// `null` for none, as some servers write it.
    tags: Option<Vec<String>>,
}

impl Upstream {
    /// All tags as the upstream orders them, following `Link` pages; what is no tag is left out. A list
    /// beyond the limits (50 pages, 100,000 tags) is cut there. A mirror is asked where the upstream
    /// itself fails: it may list no more than it holds. All of it takes four deadlines at most.
    pub async fn tags(&self, identity: Identity, name: &Name) -> Result<Vec<Tag>, Error> {
        let tags = async {
            let _place = self.request_gate.enter().await?;
            let mut round = self.round(identity, None, First::Itself);
            while let Some(turn) = round.next() {
                let pages = turn.within(self.pages(&turn, name)).await;
                if let Some(pages) = round.judge(turn, pages) {
                    return pages;
                }
            }
            Err(round.end())
        };
        tags.await.map_err(|cause| self.error("GET tags", name, "", cause))
    }

    async fn pages(&self, turn: &Turn<'_>, name: &Name) -> Result<Vec<Tag>, Cause> {
        let requests = &turn.endpoint.requests;
        let mut tags = Vec::new();
        let mut asked = HashSet::new();
        let mut next = Some(PAGE.to_owned());
        while let Some(query) = next.take() {
            let mut ask =
                self.ask(turn, UpstreamCall::Tags, Method::GET, name, "tags/list", HeaderMap::new())?;
            ask.url.set_query(Some(&query));
            let answer = requests.send(&ask).await?;
            if answer.status() != StatusCode::OK {
                return Err(requests.refusal(answer).await);
            }
            asked.insert(query);
            let following = next_query(answer.response.headers()).filter(|query| !asked.contains(query));
            let body = requests.wire.reading.whole(answer.response, MAX_PAGE_BYTES, "a page of tags").await?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|e| Cause::Corrupt(format!("the list of tags is not as specified: {e}")))?;
            tags.extend(page.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()));
            let full = tags.len() >= MAX_TAGS || asked.len() >= MAX_PAGES;
            if tags.len() > MAX_TAGS || (full && following.is_some()) {
                tracing::warn!(upstream = %self.options.host, %name, "the list of tags is cut: too many");
                tags.truncate(MAX_TAGS);
                break;
            }
            next = following;
        }
        Ok(tags)
    }
}

/// The query of the `Link` with `rel="next"` (RFC 8288). Only the query: the rest of the URL is known,
/// and what differs from it would lead astray.
pub(super) fn next_query(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(LINK).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split('<').skip(1)).find_map(|link| {
        let (url, params) = link.split_once('>')?;
        let is_next = params.split([';', ',']).any(|param| {
            let rel = param.trim().split_once('=').filter(|(key, _)| key.trim().eq_ignore_ascii_case("rel"));
            rel.is_some_and(|(_, value)| {
                value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
            })
        });
        let query = url.split('#').next()?.split_once('?')?.1;
        (is_next && !query.is_empty()).then(|| query.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn next(line: &str) -> Option<String> {
        next_query(&HeaderMap::from_iter([(LINK, HeaderValue::from_str(line).unwrap())]))
    }

    #[test]
    fn the_next_page_s_query_is_found() {
        assert_eq!(next(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#).unwrap(), "n=2&last=b");
        assert_eq!(
            next(r#"</p?x=1>; rel=prev, <https://evil.example/q?y=2#f>; Rel="first next""#).unwrap(),
            "y=2"
        );
        for none in ["", "</p?x=1>", "</p>; rel=next", "</p?x=1; rel=next", r#"</p?x=1>; rel="nextish""#] {
            assert_eq!(next(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_link_panics(line in "[ -~]{0,80}") {
            next(&line);
        }
    }
}
