" Templates of fathom: YAML with line statements, bracket blocks, expressions and node tags.
if exists("b:current_syntax")
  finish
endif
runtime! syntax/yaml.vim
unlet! b:current_syntax

" What stands inside statements and expressions.
syntax match fathomString /\v"[^"]*"|'[^']*'/ contained
syntax match fathomNumber /\v<\d[0-9_]*(\.\d+)?([eE][-+]?\d+)?>/ contained
syntax match fathomFilter /\v\|\s*\w+/ contained
syntax keyword fathomKeyword contained extends include import from as block endblock super set endset if elif else endif
syntax keyword fathomKeyword contained for endfor in macro endmacro call endcall filter endfilter with endwith do raw endraw
syntax keyword fathomKeyword contained not and or is recursive ignore missing break continue
syntax keyword fathomConstant contained True False None true false none
syntax cluster fathomExpression contains=fathomString,fathomNumber,fathomFilter,fathomKeyword,fathomConstant,fathomTrailing

" -- statement, << and >> with the blanks before or after it eaten; == expression, => without line breaks around it.
syntax match fathomStatement /\v^\s*(--|\<\<|\>\>)\s.*$/ contains=fathomSigil,@fathomExpression
syntax match fathomPrint /\v^\s*(\=\=|\=\>)\s.*$/ contains=fathomSigil,@fathomExpression
syntax match fathomSigil /\v^\s*(--|\<\<|\>\>|\=\=|\=\>)/ contained

" [block], or [block!] without blanks around it; # --- name --- begins another template.
syntax match fathomBlock /\v^\s*\[\w+!*\]\s*$/
syntax match fathomSeparator /\v^#\s*-{3,}\s*[A-Za-z0-9_.\/]+\s*-{3,}$/

" {{ expression }}, {% statement %}, {# comment #}
syntax region fathomInline matchgroup=fathomBraces start=/{{[-+]\?/ end=/[-+]\?}}/ oneline contains=@fathomExpression containedin=yamlFlowString,yamlPlainScalar,yamlBlockMappingKey,yamlFlowMappingKey,yamlComment,yamlFlowMapping
syntax region fathomInline matchgroup=fathomBraces start=/{%[-+]\?/ end=/[-+]\?%}/ contains=@fathomExpression containedin=ALLBUT,fathomComment
syntax region fathomComment start=/{#/ end=/#}/

" !kind:constructor@identity
syntax match fathomTag /\v!(singleton|call|factory|partial|lambda|meta|var|list|tuple|dict|dlist)(:[^ \t,\]}]*)?/ containedin=yamlNodeTag,yamlPlainScalar

" ## to the end of the line.
syntax match fathomComment /\v^\s*##.*$/
syntax match fathomTrailing /\v\s##.*$/ containedin=ALLBUT,fathomComment

highlight default link fathomStatement PreProc
highlight default link fathomPrint PreProc
highlight default link fathomSigil Special
highlight default link fathomBlock Title
highlight default link fathomSeparator Title
highlight default link fathomBraces Delimiter
highlight default link fathomInline PreProc
highlight default link fathomTag Type
highlight default link fathomComment Comment
highlight default link fathomTrailing Comment
highlight default link fathomString String
highlight default link fathomNumber Number
highlight default link fathomFilter Function
highlight default link fathomKeyword Statement
highlight default link fathomConstant Constant

let b:current_syntax = "fathom_template"
