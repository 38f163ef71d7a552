"""A page on which two models answer the same prompt side by side, each answer with its scores while it arrives.

`session` asks the models and follows their answers, `reading` scores what they say, `views` makes of it what is shown,
`page` puts it together and listens. The models may be served ones or loaded in this process.
"""
