" Templates of fathom: by the folders they lie in. `setlocal filetype=fathom_template` makes any other file one.
autocmd BufRead,BufNewFile */templates/*.yaml,*/templates/*.jinja setlocal filetype=fathom_template
autocmd BufRead,BufNewFile */templatelib/*.yaml,*/templatelib/*.jinja setlocal filetype=fathom_template
autocmd BufRead,BufNewFile */forgather_workspace/*.yaml,meta.yaml setlocal filetype=fathom_template
