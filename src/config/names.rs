//! Who owns which names: hosts and aliases of upstreams, and hosted patterns (design: "names").

use std::collections::HashMap;

use globset::GlobBuilder;

use crate::http::OwnersOptions;

use super::defaults;
use super::error::ConfigError;
use super::section::Section;
use super::upstreams::Upstream;

/// Checks that no name has two owners. Also tells of `shadow`.
pub fn owners(
    upstreams: &[Upstream],
    hosted: &mut Section,
    warnings: &mut Vec<String>,
) -> Result<(OwnersOptions, bool), ConfigError> {
    let claimed = claimed(upstreams)?;
    let has_default = upstreams.iter().any(|upstream| upstream.options.host.is_default());
    let shadow = hosted.switch("shadow")?.unwrap_or(false);
    let patterns = hosted.texts("repositories")?;
    for pattern in patterns.iter().flatten() {
        pattern.read(|text| check_pattern(text))?;
        let first = pattern.value.split('/').next().unwrap_or_default();
        if let Some(host) = claimed.get(first)
            && first != pattern.value
        {
            return Err(pattern.error(format!(
                "names under `{first}/` belong to the upstream {host}, so this pattern never matches; choose another \
                 first component, such as `corp.internal`"
            )));
        }
        if !has_default || !could_be_on_docker_hub(&pattern.value) {
            continue;
        }
        let pattern_text = &pattern.value;
        if !shadow {
            return Err(pattern.error(format!(
                "`{pattern_text}` matches names that Docker Hub may have, and dockerd would be given hosted images for \
                 them; start the pattern with a component that has a dot, such as `corp.internal/**`, or set \
                 `shadow = true` if that is what you want"
            )));
        }
        warnings.push(format!(
            "hosted.repositories: `{pattern_text}` hides Docker Hub's repositories of the same names"
        ));
    }
    let patterns = patterns.map(|patterns| patterns.into_iter().map(|found| found.value).collect());
    let owners = OwnersOptions {
        upstreams: upstreams
            .iter()
            .map(|Upstream { options, aliases }| {
                (options.host.clone(), aliases.iter().map(|alias| alias.value.clone()).collect())
            })
            .collect(),
        hosted: patterns.unwrap_or_else(|| vec![defaults::HOSTED.into()]),
    };
    Ok((owners, shadow))
}

/// First components that lead to an upstream.
fn claimed(upstreams: &[Upstream]) -> Result<HashMap<&str, &str>, ConfigError> {
    let mut claimed: HashMap<&str, &str> = upstreams
        .iter()
        .map(|upstream| (upstream.options.host.as_str(), upstream.options.host.as_str()))
        .collect();
    for Upstream { options, aliases } in upstreams {
        for alias in aliases {
            let text = alias.value.as_str();
            match claimed.insert(text, options.host.as_str()) {
                None => {}
                Some(other) if other == text => {
                    return Err(
                        alias.error(format!("`{text}` is an upstream's own name; choose another alias"))
                    );
                }
                Some(other) => {
                    return Err(alias.error(format!(
                        "`{text}` is an alias of {other} already; leave one of the two out"
                    )));
                }
            }
        }
    }
    Ok(claimed)
}

/// What stands for components of names: their characters, `*`, and `**` as a component of its own.
pub fn check_pattern(text: &str) -> Result<(), String> {
    let example = "write it as in `*`, `corp.internal/**` or `corp.internal/team-*`";
    let in_name =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*');
    let component =
        |part: &str| !part.is_empty() && part.bytes().all(in_name) && (part == "**" || !part.contains("**"));
    if !text.split('/').all(component) {
        return Err(format!("`{text}` is no pattern of repository names; {example}"));
    }
    // http builds the same glob; what it cannot take is found here.
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    glob.map(|_| ()).map_err(|error| format!("{error}; {example}"))
}

/// Docker Hub's names have two components, and its namespaces have no dot.
fn could_be_on_docker_hub(pattern: &str) -> bool {
    let first = pattern.split('/').next().unwrap_or_default();
    (pattern.contains('/') || pattern.contains("**")) && !first.contains('.')
}
