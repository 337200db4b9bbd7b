"""3D mockups: a customer's artwork on a product, rendered by Mitsuba from warm glTF scenes.

    request   what a customer may ask for                  artwork   untrusted bytes to a fitted picture
    template  GLB files as plain arrays                    studio    the light round a product, as an environment map
    variant   which Mitsuba back end works on this machine
    scene     a warm scene on the render thread            picture   light to pixels
    chunks    a render as short pieces                     engine    the calls: `MockupEngine`

Only `variant`, `scene` and `chunks` touch Mitsuba, and only once a scene is built; everything else imports without it.
"""
