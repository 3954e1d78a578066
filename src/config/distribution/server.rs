//! `http` and `log`: where and how the server listens, and what it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use super::super::error::ConfigError;
use super::super::units::format_time;
use super::Mapping;
use super::reader::Table;

type Result<T> = std::result::Result<T, ConfigError>;

pub fn log(mapping: &mut Mapping, root: &mut Table) -> Result<()> {
    let old = root.text("loglevel")?;
    let mut log = root.table("log")?;
    if let Some(level) = log.text("level")?.or(old) {
        let text = level.value.to_ascii_lowercase();
        if !["error", "warn", "info", "debug"].contains(&text.as_str()) {
            return Err(level.error("the level is `error`, `warn`, `info` or `debug`"));
        }
        mapping.text(&["log", "level"], &level, text);
    }
    if let Some(formatter) = log.text("formatter")? {
        match formatter.value.as_str() {
            "text" => mapping.text(&["log", "format"], &formatter, "text"),
            "json" => mapping.text(&["log", "format"], &formatter, "json"),
            "logstash" => {
                mapping
                    .warn(&formatter, "the log is written as JSON, with field names that are not logstash's");
                mapping.text(&["log", "format"], &formatter, "json");
            }
            _ => return Err(formatter.error("the formatter is `text`, `json` or `logstash`")),
        }
    }
    let mut access = log.table("accesslog")?;
    if let Some(disabled) = access.switch("disabled")? {
        mapping.switch(&["log", "access"], &disabled, !disabled.value);
    }
    access.finish(&mut mapping.warnings);
    if let Some(hooks) = log.skip(&["hooks"]).first() {
        mapping.warn(hooks, "no mail is sent; let something watch the log or the metrics");
    }
    mapping.ignore(&mut log, &["fields", "reportcaller"]);
    log.finish(&mut mapping.warnings);
    Ok(())
}

pub fn http(mapping: &mut Mapping, mut http: Table) -> Result<()> {
    if let Some(net) = http.text("net")?.filter(|net| net.value != "tcp") {
        return Err(net.error(format!(
            "`{}` is not served; remove the line and name a TCP address in http.addr",
            net.value
        )));
    }
    match http.text("addr")? {
        Some(addr) => {
            let listen = addr.read(|text| addresses(text))?;
            mapping.texts(&["listen"], &addr, listen.iter().map(ToString::to_string));
        }
        None => {
            let everywhere = http.default("addr", ());
            mapping.texts(&["listen"], &everywhere, everywhere_at(5000).iter().map(ToString::to_string));
            let given = http.given();
            mapping.warn(&given, "http.addr is not there, so this is port 5000 of every interface");
        }
    }
    if let Some(time) = http.time("draintimeout")?.filter(|time| !time.value.is_zero()) {
        mapping.text(&["shutdown", "grace"], &time, format_time(time.value));
    }
    tls(mapping, http.table("tls")?)?;
    debug(mapping, http.table("debug")?)?;
    if let Some(prefix) = http.text("prefix")?.filter(|prefix| !prefix.value.trim_matches('/').is_empty()) {
        return Err(prefix.error(
            "nothing is served under a path of its own; remove the line and let the reverse proxy in front strip the \
             path and send X-Forwarded-Prefix",
        ));
    }
    if let Some(host) = http.text("host")? {
        mapping.warn(&host, "ignored: answers follow the address that a request came to");
    }
    headers(mapping, http.table("headers")?)?;
    let mut http2 = http.table("http2")?;
    if let Some(disabled) = http2.switch("disabled")?.filter(|disabled| disabled.value) {
        mapping.warn(&disabled, "ignored: HTTP/2 stays on for who asks for it");
    }
    http2.finish(&mut mapping.warnings);
    // HTTP/2 in the clear is served to who begins with it, relative locations are the rule, and
    // nothing of an upload's state is trusted to its client, so there is nothing to sign.
    mapping.ignore(&mut http, &["secret"]);
    http.skip(&["relativeurls", "h2c"]);
    http.finish(&mut mapping.warnings);
    Ok(())
}

fn headers(mapping: &mut Mapping, headers: Table) -> Result<()> {
    for (name, values) in headers.lists()? {
        if name.eq_ignore_ascii_case("X-Content-Type-Options") {
            mapping.ignored.push(values.key);
        } else {
            mapping.warn(&values, "ignored: let the reverse proxy in front add this header");
        }
    }
    Ok(())
}

fn tls(mapping: &mut Mapping, mut tls: Table) -> Result<()> {
    let certificate = tls.text("certificate")?;
    if let Some(certificate) = &certificate {
        mapping.text(&["tls", "certificate_file"], certificate, certificate.value.clone());
    }
    if let Some(key) = tls.text("key")? {
        mapping.text(&["tls", "key_file"], &key, key.value.clone());
    }
    let encrypt = tls.table("letsencrypt")?;
    if !encrypt.is_empty() && certificate.is_none() {
        return Err(encrypt.given().error(
            "certificates are not fetched; let certbot or another client keep one, and name it in \
             http.tls.certificate and http.tls.key: it is taken up when it changes",
        ));
    }
    client_certificates(mapping, &mut tls)?;
    if let Some(lowest) = tls.text("minimumtls")? {
        match lowest.value.as_str() {
            "tls1.2" => {}
            "tls1.0" | "tls1.1" => mapping.warn(&lowest, "TLS 1.2 is the lowest that is spoken"),
            "tls1.3" => {
                return Err(lowest.error(
                    "TLS 1.2 is spoken too, and cannot be turned off; remove the line if that is good enough",
                ));
            }
            _ => return Err(lowest.error("the lowest version is `tls1.2`")),
        }
    }
    if let Some(suites) = tls.texts("ciphersuites")? {
        mapping.warn(
            &suites,
            "ignored: only suites with forward secrecy and authenticated encryption are spoken",
        );
    }
    tls.finish(&mut mapping.warnings);
    Ok(())
}

fn client_certificates(mapping: &mut Mapping, tls: &mut Table) -> Result<()> {
    let wanted = tls.text("clientauth")?;
    let Some(cas) = tls.texts("clientcas")?.filter(|cas| !cas.value.is_empty()) else {
        return match wanted {
            Some(wanted) => {
                Err(wanted.error("this needs the CAs that certificates are checked by: http.tls.clientcas"))
            }
            None => Ok(()),
        };
    };
    let [ca] = cas.value.as_slice() else {
        return Err(cas.error("one file is read here; put the certificates of all of them into one"));
    };
    mapping.text(&["tls", "client_ca_file"], &cas, ca.clone());
    let required = tls.default("clientauth", "require-and-verify-client-cert".to_owned());
    let wanted = wanted.unwrap_or(required);
    let ours = match wanted.value.as_str() {
        "require-and-verify-client-cert" => "required",
        "verify-client-cert-if-given" => "optional",
        "request-client-cert" | "require-any-client-cert" => {
            return Err(wanted.error(
                "certificates that nobody checks mean nothing; write `verify-client-cert-if-given` or \
                 `require-and-verify-client-cert`",
            ));
        }
        _ => {
            return Err(
                wanted.error("write `verify-client-cert-if-given` or `require-and-verify-client-cert`")
            );
        }
    };
    mapping.text(&["tls", "client_auth"], &wanted, ours);
    Ok(())
}

fn debug(mapping: &mut Mapping, mut debug: Table) -> Result<()> {
    if let Some(addr) = debug.text("addr")? {
        let first = addr.read(|text| addresses(text))?[0];
        mapping.text(&["operations"], &addr, first.to_string());
    }
    let mut prometheus = debug.table("prometheus")?;
    prometheus.skip(&["enabled"]);
    if let Some(path) = prometheus.text("path")?.filter(|path| path.value != "/metrics") {
        mapping.warn(&path, "ignored: metrics are at /metrics");
    }
    prometheus.finish(&mut mapping.warnings);
    debug.finish(&mut mapping.warnings);
    Ok(())
}

/// What Go takes for an address: `:5000` is every interface, and a host may be a name. IPv4 first.
fn addresses(text: &str) -> std::result::Result<Vec<SocketAddr>, String> {
    let wrong = || format!("`{text}` is no address with a port; write it as in `:5000` or `127.0.0.1:5000`");
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    match host {
        "" => Ok(everywhere_at(port)),
        "localhost" => {
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            Ok(loopback.map(|ip| (ip, port).into()).to_vec())
        }
        host => {
            let found = (host, port).to_socket_addrs().map_err(|error| format!("{}: {error}", wrong()))?;
            // As Go has it: one address of a name, an IPv4 one if there is any.
            let found = found.min_by_key(SocketAddr::is_ipv6);
            found.map(|address| vec![address]).ok_or_else(wrong)
        }
    }
}

fn everywhere_at(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_go_has_them() {
        for (text, expected) in [
            (":5000", &["0.0.0.0:5000", "[::]:5000"][..]),
            ("localhost:5001", &["127.0.0.1:5001", "[::1]:5001"]),
            ("0.0.0.0:80", &["0.0.0.0:80"]),
            ("[::1]:80", &["[::1]:80"]),
        ] {
            let found: Vec<String> = addresses(text).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text}");
        }
        for text in ["", "5000", ":http", ":70000", "a b:1", "::1:x"] {
            assert!(addresses(text).unwrap_err().contains("`:5000`"), "{text}");
        }
    }
}
