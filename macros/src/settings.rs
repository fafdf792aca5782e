//! What may stand in the parentheses of `#[task(…)]`: each setting becomes one call of the builder `scalable::Options`, and a
//! figure written as text is checked while the program is compiled.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, Ident, Lit, Token, parenthesized};

const KNOWN: &str = "cpus, memory, gpus, resources(…), component, retries, backoff, backoff_max, timeout, grace, retry_on(…), \
                     oom_factor, timeout_factor, priority, max_parallel, isolation, native, name";

/// The settings of one task.
pub(crate) struct Settings {
    /// Calls of the builder, one after the other: `.cpus(1).memory("1GiB")`.
    pub(crate) calls: TokenStream,
    /// Checks made while the program is compiled.
    pub(crate) checks: TokenStream,
    /// The name the function is registered under, where it was given one.
    pub(crate) name: Option<String>,
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut settings = Settings { calls: TokenStream::new(), checks: TokenStream::new(), name: None };
        let mut seen: Vec<String> = Vec::new();
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            let word = key.to_string();
            if seen.contains(&word) {
                return Err(syn::Error::new(key.span(), format!("`{word}` is given twice")));
            }
            settings.one(&key, input)?;
            seen.push(word);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(settings)
    }
}

impl Settings {
    fn one(&mut self, key: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        match key.to_string().as_str() {
            "resources" => return self.resources(input),
            "retry_on" => return self.retry_on(input),
            _ => {}
        }
        if !input.peek(Token![=]) {
            return Err(unknown_or(key, format!("`{key}` needs a value: `{key} = …`")));
        }
        input.parse::<Token![=]>()?;
        let value: Expr = input.parse()?;
        let span = value.span();
        let text = text_of(&value);
        match key.to_string().as_str() {
            "cpus" => self.checked(key, &value, text, "check_cpus"),
            "memory" => self.checked(key, &value, text, "check_memory"),
            "timeout" | "grace" | "backoff" | "backoff_max" => self.checked(key, &value, text, "check_duration"),
            "gpus" | "retries" | "priority" | "max_parallel" | "oom_factor" | "timeout_factor" => self.call(key, &value),
            "component" | "native" => match text {
                Some(_) => self.call(key, &value),
                None => return Err(syn::Error::new(span, format!("`{key}` is a text: `{key} = \"…\"`"))),
            },
            "name" => match text {
                Some(text) if !text.is_empty() => self.name = Some(text),
                _ => return Err(syn::Error::new(span, "`name` is a text that is not empty: `name = \"…\"`")),
            },
            "isolation" => {
                let variant = match text.as_deref() {
                    Some("process") => quote_spanned!(span=> Process),
                    Some("thread") => quote_spanned!(span=> Thread),
                    _ => return Err(syn::Error::new(span, "`isolation` is \"process\" or \"thread\"")),
                };
                self.calls.extend(quote_spanned!(span=> .isolation(::scalable::Isolation::#variant)));
            }
            _ => return Err(unknown_or(key, String::new())),
        }
        Ok(())
    }

    fn call(&mut self, key: &Ident, value: &Expr) {
        let span = value.span();
        self.calls.extend(quote_spanned!(span=> .#key(#value)));
    }

    /// A figure: a number, or a text that is checked now.
    fn checked(&mut self, key: &Ident, value: &Expr, text: Option<String>, check: &str) {
        if text.is_some() {
            let check = Ident::new(check, Span::call_site());
            let span = value.span();
            self.checks.extend(quote_spanned!(span=> const _: () = ::scalable::macro_support::#check(#value);));
        }
        self.call(key, value);
    }

    /// `resources(licence = 1, fast_disk = 2)`.
    fn resources(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        let inner;
        parenthesized!(inner in input);
        while !inner.is_empty() {
            let name: Ident = inner.parse()?;
            inner.parse::<Token![=]>()?;
            let amount: Expr = inner.parse()?;
            let word = name.to_string();
            self.calls.extend(quote!(.resource(#word, #amount)));
            if !inner.is_empty() {
                inner.parse::<Token![,]>()?;
            }
        }
        Ok(())
    }

    /// `retry_on("timeout", "oom")`.
    fn retry_on(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        let inner;
        parenthesized!(inner in input);
        let causes = inner.parse_terminated(<syn::LitStr as Parse>::parse, Token![,])?;
        let causes = causes.iter();
        self.calls.extend(quote!(.retry_on([#(#causes),*])));
        Ok(())
    }
}

fn text_of(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

fn unknown_or(key: &Ident, message: String) -> syn::Error {
    let known = KNOWN.split(", ").any(|word| key == word.trim_end_matches("(…)"));
    if known && !message.is_empty() {
        syn::Error::new(key.span(), message)
    } else {
        syn::Error::new(key.span(), format!("a task has no setting `{key}`; it knows {KNOWN}"))
    }
}
