//! What the attribute writes for `fn simulate(scenario: Scenario, member: u32) -> Result<Series, ModelError>`:
//!
//! - a unit struct `simulate`, which is what `session.submit(simulate, …)` is given. It dereferences to a function pointer, so
//!   that `simulate(scenario, 7)` still calls the function;
//! - its implementation of `scalable::Task`, with the types that a submit is checked against;
//! - an entry in the program's list of functions, under which a lane host finds it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, ReturnType, Type};

use crate::settings::Settings;

/// Most parameters of a task.
const PARAMETERS_MAX: usize = 12;

pub(crate) fn expand(settings: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let settings: Settings = syn::parse2(settings)?;
    let function: ItemFn = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), format!("`#[task]` stands before a function with a body ({error})")))?;
    let parameters = parameters(&function)?;
    Ok(written(&settings, &function, &parameters))
}

/// The types of the parameters, or why this function cannot be a task.
fn parameters(function: &ItemFn) -> syn::Result<Vec<Type>> {
    let signature = &function.sig;
    if let Some(parameter) = signature.generics.params.first() {
        let message = "a task has no generic parameters: it is found by its name in another process, which needs one function; \
                       write a task for each type that calls the generic function";
        return Err(Error::new(parameter.span(), message));
    }
    if let Some(token) = &signature.unsafety {
        return Err(Error::new(
            token.span(),
            "a task is a safe function: call the unsafe one inside, where its conditions are met",
        ));
    }
    if let Some(token) = &signature.abi {
        return Err(Error::new(token.span(), "a task is a Rust function without an `extern`"));
    }
    if let Some(token) = &signature.variadic {
        return Err(Error::new(token.span(), "a task has a fixed number of parameters"));
    }
    if signature.inputs.len() > PARAMETERS_MAX {
        let message = format!("a task has at most {PARAMETERS_MAX} parameters: put some of them into a struct");
        return Err(Error::new(signature.inputs.span(), message));
    }
    let mut types = Vec::new();
    for input in &signature.inputs {
        let parameter = match input {
            FnArg::Receiver(receiver) => {
                return Err(Error::new(
                    receiver.span(),
                    "a task is a free function, not a method: pass the value as a parameter",
                ));
            }
            FnArg::Typed(parameter) => parameter,
        };
        match &*parameter.ty {
            Type::Reference(reference) => {
                let message = "a task owns its parameters, they come from another process: write `String` instead of `&str`, \
                               `Vec<T>` instead of `&[T]`, `T` instead of `&T`";
                return Err(Error::new(reference.span(), message));
            }
            Type::ImplTrait(of) => {
                return Err(Error::new(of.span(), "a task's parameters have types with a name: it is decoded from bytes"));
            }
            other => types.push(other.clone()),
        }
    }
    Ok(types)
}

/// True for `Result<…>` under any path: `io::Result<T>`, `anyhow::Result<T>`.
fn is_result(output: &ReturnType) -> bool {
    match output {
        ReturnType::Type(_, of) => match &**of {
            Type::Path(path) => path.path.segments.last().is_some_and(|segment| segment.ident == "Result"),
            _ => false,
        },
        ReturnType::Default => false,
    }
}

fn written(settings: &Settings, function: &ItemFn, types: &[Type]) -> TokenStream {
    let ItemFn { attrs, vis, sig, block } = function;
    let name = &sig.ident;
    let Settings { calls, checks, name: given } = settings;
    let registered = match given {
        Some(given) => quote!(#given),
        None => {
            let word = name.to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #word))
        }
    };
    let returned = match &sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, of) => quote!(#of),
    };
    let (asyncness, inputs, output) = (&sig.asyncness, &sig.inputs, &sig.output);
    let numbers = 0..types.len();
    let values: Vec<_> = (0..types.len()).map(|n| format_ident!("value_{n}")).collect();
    let output_span = sig.output.span();
    let (value, outcome) = if is_result(&sig.output) {
        (quote_spanned!(output_span=> <#returned as ::scalable::macro_support::Fallible>::Value), format_ident!("fallible"))
    } else {
        (returned.clone(), format_ident!("plain"))
    };

    let (target, pointer, call) = if asyncness.is_some() {
        let boxed = quote! {
            ::core::pin::Pin<::std::boxed::Box<dyn ::core::future::Future<Output = #returned> + ::core::marker::Send>>
        };
        let pointer = quote!(|#(#values: #types),*| ::std::boxed::Box::pin(#name::call(#(#values),*)));
        let call = quote! {
            let result = #name::call(#(#values),*);
            ::core::result::Result::Ok(::scalable::macro_support::later(async move {
                ::scalable::macro_support::#outcome(result.await)
            }))
        };
        (quote!(fn(#(#types),*) -> #boxed), pointer, call)
    } else {
        let call = quote!(::scalable::macro_support::#outcome(#name::call(#(#values),*)).map(::core::convert::Into::into));
        (quote!(fn(#(#types),*) -> #returned), quote!(#name::call), call)
    };

    let checks_of_types = types.iter().map(|of| {
        let span = of.span();
        quote_spanned!(span=> ::scalable::macro_support::is_value::<#of>();)
    });
    let check_of_value = quote_spanned!(output_span=> ::scalable::macro_support::is_value::<#value>(););
    let docs = attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
    let rest = attrs.iter().filter(|attribute| !attribute.path().is_ident("doc"));

    quote! {
        #(#docs)*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug)]
        #vis struct #name;

        impl #name {
            #(#rest)*
            #asyncness fn call(#inputs) #output #block

            /// This task with other options than it was declared with.
            #[allow(dead_code)]
            #vis fn with(self) -> ::scalable::Configured<#name> {
                ::scalable::Configured::new()
            }
        }

        impl ::core::ops::Deref for #name {
            type Target = #target;

            fn deref(&self) -> &Self::Target {
                const POINTER: #target = #pointer;
                &POINTER
            }
        }

        const _: () = {
            #checks

            fn checked() {
                #(#checks_of_types)*
                #check_of_value
            }

            fn called(
                call: &mut ::scalable::macro_support::Call<'_>,
            ) -> ::core::result::Result<::scalable::macro_support::Returned, ::scalable::macro_support::CallError> {
                #(let #values = ::scalable::macro_support::argument::<#types>(call, #numbers)?;)*
                #call
            }

            impl ::scalable::Task for #name {
                type Parameters = (#(#types,)*);
                type Output = #value;
                const FUNCTION: ::scalable::macro_support::Function = ::scalable::macro_support::Function {
                    name: #registered,
                    codec: ::scalable::codec::NAME,
                    signature: ::scalable::macro_support::signature::<#name>,
                    call: called,
                };

                fn options() -> ::scalable::Options {
                    let _ = checked;
                    ::scalable::Options::new() #calls
                }
            }

            ::scalable::macro_support::inventory::submit! {
                ::scalable::macro_support::Registered(<#name as ::scalable::Task>::FUNCTION)
            }
        };
    }
}
